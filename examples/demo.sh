#!/bin/sh
# The whole way on a plain CPU: quantize the demo model, compare, and let the result answer.
set -eu
: "${BIN:=.venv/bin}" "${OUT:=demo-out}"
MODEL=examples/demo_model/model

say() { printf '\n== %s\n' "$1"; }

rm -rf "$OUT"
mkdir -p "$OUT"

say "Quantize the demo model to 4 bits"
"$BIN/awqkit-convert" "$MODEL" "$OUT/int4" --calib-dataset self \
    --calib-samples 32 --calib-seqlen 512 --report "$OUT/report.html"

say "Compare with the BF16 model on a text that neither has seen"
"$BIN/awqkit-runtime" perplexity "$OUT/int4" --against "$MODEL" \
    --text examples/demo_model/evaluation.txt

say "Talk to the 4-bit model"
"$BIN/awqkit-runtime" generate "$OUT/int4" --chat -p "Good evening! Who are you?"

say "Go on yourself"
echo "$BIN/awqkit-runtime chat $OUT/int4"
