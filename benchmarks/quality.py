"""What quantization costs a model, against rounding to nearest, on a text held out from it all.

    python benchmarks/quality.py MODEL --text FILE --json benchmarks/results/quality.json

Each way is written as a checkpoint, loaded by the runtime, and compared with the original model:
perplexity, and KL divergence in nats per token. --text and --json may be given several times.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from machine import save_results
from torch import Tensor

from awqkit import QuantConfig, quantize
from awqkit.calibration.documents import SEPARATOR_LINE
from awqkit.checkpoint import Checkpoint, QuantizedWeight, open_checkpoint, write_checkpoint
from awqkit.checkpoint.layout import is_quantizable
from awqkit.checkpoint.tokenizer import load_tokenizer
from awqkit.config import QUALITIES
from awqkit.device import resolve_device
from awqkit.search.affine import in_groups, min_max_grid, nearest_codes, to_quantized_weight
from awqkit_runtime import load

#: From token ids [1, T] to logits [1, T, vocab].
Model = Callable[[Tensor], Tensor]
WAYS = ("round to nearest", "fast", "balanced without scales", "balanced", "best")


@dataclass(frozen=True, kw_only=True)
class Row:
    way: str
    perplexity: float
    kl: float
    seconds: float


def main() -> None:
    options = parse_options()
    device = resolve_device("auto")
    original = load(options.model, device=device, dtype=torch.float32)
    texts = [Text.of(options.model, path, options.seqlen) for path in options.text]
    for text in texts:
        text.tell(score("original", original, original, text, 0.0))
    with tempfile.TemporaryDirectory() as folder:
        for way in WAYS:
            out, start = Path(folder) / way.replace(" ", "-"), time.perf_counter()
            make(way, options, out)
            seconds = time.perf_counter() - start
            model = load(out, device=device, dtype=torch.float32)
            for text in texts:
                text.tell(score(way, model, original, text, seconds))
    source = (
        Path(options.calib_dataset).name
        if Path(options.calib_dataset).is_file()
        else options.calib_dataset
    )
    for text, path in zip(texts, options.json or [], strict=bool(options.json)):
        save_results(
            path,
            model=options.model.name,
            text=text.name,
            tokens=text.ids.numel(),
            calibration=f"{source} {options.calib_samples}x{options.calib_seqlen}",
            rows=[asdict(row) for row in text.rows],
        )


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True, action="append")
    parser.add_argument("--seqlen", type=int, default=512, help="tokens a row of the text")
    parser.add_argument("--calib-dataset", default="self")
    parser.add_argument("--calib-samples", type=int, default=128)
    parser.add_argument("--calib-seqlen", type=int, default=2048)
    parser.add_argument("--json", type=Path, action="append", help="one for each --text")
    options = parser.parse_args()
    if options.json and len(options.json) != len(options.text):
        parser.error("give --json as often as --text")
    return options


@dataclass(frozen=True, kw_only=True)
class Text:
    """ids: int64 [rows, seqlen].  rows: what was found on it."""

    name: str
    ids: Tensor
    rows: list[Row] = field(default_factory=list)

    @classmethod
    def of(cls, model: Path, path: Path, seqlen: int) -> Text:
        return cls(name=path.name, ids=text_rows(model, path, seqlen))

    def tell(self, row: Row) -> None:
        """Keep a row and print it, with how much of round-to-nearest's KL is gone in it."""
        self.rows.append(row)
        gap = f"   gap closed {1 - row.kl / self.rows[1].kl:.1%}" if len(self.rows) > 2 else ""
        print(
            f"{self.name:12} {row.way:24} perplexity {row.perplexity:8.3f}   KL {row.kl:.5f}   "
            f"{row.seconds:6.1f} s{gap}",
            flush=True,
        )


def text_rows(model: Path, text: Path, seqlen: int) -> Tensor:
    """int64 [rows, seqlen], document after document; the last, incomplete row is left out."""
    documents = text.read_text(encoding="utf-8").split(f"\n{SEPARATOR_LINE}\n")
    tokenizer = load_tokenizer(model)
    ids = [id_ for encoded in tokenizer.encode_batch(documents) for id_ in encoded]
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


@torch.inference_mode()
def score(way: str, model: Model, original: Model, text: Text, seconds: float) -> Row:
    device, kl, loss = resolve_device("auto"), 0.0, 0.0
    for ids in text.ids.split(1):
        ids = ids.to(device)
        log, reference = (torch.log_softmax(each(ids)[:, :-1], -1) for each in (model, original))
        kl += float((reference.exp() * (reference - log)).sum())
        loss -= float(log.gather(-1, ids[:, 1:].unsqueeze(-1)).sum())
    count = text.ids[:, 1:].numel()
    return Row(way=way, perplexity=math.exp(loss / count), kl=kl / count, seconds=round(seconds, 1))


if __name__ == "__main__":
    main()
