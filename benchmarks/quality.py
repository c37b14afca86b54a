"""What quantization costs a model, against rounding to nearest, on a text held out from it all.

    python benchmarks/quality.py MODEL --text FILE --json benchmarks/results/quality.json

Each way is written as a checkpoint, loaded by the runtime, and compared with the original model:
perplexity, and KL divergence in nats per token.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from machine import save_results
from torch import Tensor

from awqkit import QuantConfig, quantize
from awqkit.checkpoint import Checkpoint, QuantizedWeight, open_checkpoint, write_checkpoint
from awqkit.checkpoint.layout import is_quantizable
from awqkit.checkpoint.tokenizer import load_tokenizer
from awqkit.config import QUALITIES
from awqkit.device import resolve_device
from awqkit.search.affine import in_groups, min_max_grid, nearest_codes, to_quantized_weight
from awqkit_runtime import load

WAYS = ("round to nearest", "fast", "balanced without scales", "balanced", "best")


@dataclass(frozen=True, kw_only=True)
class Row:
    way: str
    perplexity: float
    kl: float
    seconds: float


def main() -> None:
    options = parse_options()
    rows = text_rows(options.model, options.text, options.seqlen)
    reference = log_probabilities(options.model, rows)
    results = [Row(way="original", perplexity=perplexity(reference, rows), kl=0.0, seconds=0.0)]
    show(results[0])
    with tempfile.TemporaryDirectory() as folder:
        for way in WAYS:
            out, start = Path(folder) / way.replace(" ", "-"), time.perf_counter()
            make(way, options, out)
            seconds = time.perf_counter() - start
            results.append(score(way, out, rows, reference, seconds))
            show(results[-1])
    nearest = results[1].kl
    for row in results[2:]:
        print(f"{row.way}: {row.kl / nearest:.3f} of round-to-nearest's KL")
    if options.json:
        save_results(
            options.json,
            model=options.model.name,
            text=options.text.name,
            tokens=rows.numel(),
            calibration=f"{options.calib_dataset} {options.calib_samples}x{options.calib_seqlen}",
            rows=[asdict(row) for row in results],
        )


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--seqlen", type=int, default=512, help="tokens a row of the text")
    parser.add_argument("--calib-dataset", default="self")
    parser.add_argument("--calib-samples", type=int, default=128)
    parser.add_argument("--calib-seqlen", type=int, default=2048)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def text_rows(model: Path, text: Path, seqlen: int) -> Tensor:
    """int64 [rows, seqlen]; the text's last, incomplete row is left out."""
    ids = load_tokenizer(model).encode(text.read_text(encoding="utf-8"))
    return torch.tensor(ids[: len(ids) // seqlen * seqlen]).view(-1, seqlen)


def make(way: str, options: argparse.Namespace, out: Path) -> None:
    if way == "round to nearest":
        source = open_checkpoint(options.model)
        write_checkpoint(out, nearest(source), source=source, format="awq")
        return
    config = QuantConfig(
        quality=way.split()[0],  # type: ignore[arg-type]
        search_scale=way in QUALITIES,
        calib_samples=options.calib_samples,
        calib_seqlen=options.calib_seqlen,
        evaluate=False,
    )
    quantize(options.model, out, config, calib_dataset=options.calib_dataset)


def nearest(source: Checkpoint) -> Iterator[tuple[str, Tensor | QuantizedWeight]]:
    """Every weight; the blocks' linears on their plain grids."""
    for name in source.names():
        weight = source.tensor(name)
        if name.endswith("_proj.weight") and is_quantizable(*weight.shape):
            grid = min_max_grid(weight.float())
            codes = nearest_codes(in_groups(weight.float()), grid).flatten(-2)
            yield name, to_quantized_weight(codes, grid)
        else:
            yield name, weight


def log_probabilities(folder: Path, rows: Tensor) -> Tensor:
    """float32 [rows, seqlen - 1, vocab] on the host: of each next token."""
    device = resolve_device("auto")
    model = load(folder, device=device, dtype=torch.float32)
    with torch.inference_mode():
        logits = torch.cat([model(row.unsqueeze(0).to(device)).cpu() for row in rows])
    return torch.log_softmax(logits[:, :-1], dim=-1)


def score(way: str, folder: Path, rows: Tensor, reference: Tensor, seconds: float) -> Row:
    log = log_probabilities(folder, rows)
    kl = float((reference.exp() * (reference - log)).sum(-1).mean())
    return Row(way=way, perplexity=perplexity(log, rows), kl=kl, seconds=round(seconds, 1))


def perplexity(log: Tensor, rows: Tensor) -> float:
    return math.exp(-float(log.gather(-1, rows[:, 1:].unsqueeze(-1)).mean()))


def show(row: Row) -> None:
    print(
        f"{row.way:24} perplexity {row.perplexity:8.3f}   KL {row.kl:.5f}   {row.seconds:6.1f} s",
        flush=True,
    )


if __name__ == "__main__":
    main()
