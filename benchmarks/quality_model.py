"""Train a model to measure quantization on, and cut texts that it has never seen.

    python examples/demo_model/train.py --corpus novels.jsonl.zst --out DATA --prepare-only
    python benchmarks/quality_model.py --data DATA/data --out MODEL --minutes 1.9

MODEL then holds a Llama of 21 million parameters and, for benchmarks/quality.py, calibration.txt,
novels.txt (of other books' pages) and chat.txt. One GPU is enough.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "demo_model"))

from export import round_to_bfloat16, save_model
from network import Llama, Shape
from optimisation import Recipe, train
from prepare import TokenData
from vocabulary import CONTEXT_LENGTH, VOCABULARY_SIZE

#: Tokens at the end of the training novels that are kept for calibration instead.
CALIBRATION_TOKENS = 700_000
EVALUATION_TOKENS = 65_536


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=1.9)
    parser.add_argument("--layers", type=int, default=6)
    options = parser.parse_args()
    data = TokenData.load(options.data / "tokens.npz")
    calibration = data.novels[-CALIBRATION_TOKENS:]
    data = replace(data, novels=data.novels[:-CALIBRATION_TOKENS])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    recipe = Recipe(minutes=options.minutes, learning_rate=2.5e-3, warmup_steps=150)
    model = Llama(shape(options.layers), dropout=recipe.dropout).to(device)
    train(model, data, recipe, device=device, on_report=lambda report: print(report, flush=True))
    round_to_bfloat16(model)
    save_model(model, tokenizer_folder=options.data, out=options.out)
    tokenizer = Tokenizer.from_file(str(options.data / "tokenizer.json"))
    for name, tokens in (
        ("calibration", calibration),
        ("novels", data.held_out_novels[:EVALUATION_TOKENS]),
        ("chat", data.held_out_chat[:EVALUATION_TOKENS]),
    ):
        text = tokenizer.decode(tokens.astype(np.int64).tolist())
        (options.out / f"{name}.txt").write_text(text, encoding="utf-8")


def shape(layers: int) -> Shape:
    return Shape(
        vocabulary=VOCABULARY_SIZE,
        context=CONTEXT_LENGTH,
        hidden=512,
        intermediate=1536,
        layers=layers,
        heads=8,
        kv_heads=4,
    )


if __name__ == "__main__":
    main()
