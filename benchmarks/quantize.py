"""How long a conversion takes and how much memory, on a model of a given shape with random weights.

python benchmarks/quantize.py --shape internlm2.5-7b --json benchmarks/results/quantize.json
python benchmarks/quantize.py --shape llama-70b --layers 2 --gpu-gb 24 --quality balanced
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from host_memory import host_peak
from machine import save_results
from random_model import SHAPES, write_random_model, write_random_text

from awqkit import QuantConfig, quantize
from awqkit.config import QUALITIES
from awqkit.device import resolve_device

#: Rows that are held out of the calibration to evaluate on, and some to spare.
FURTHER_ROWS = 16


@dataclass(frozen=True, kw_only=True)
class Row:
    """seconds: by stage. GB are 10⁹ bytes; the host's are without the page cache."""

    quality: str
    total_seconds: float
    seconds_a_block: float
    seconds: dict[str, float]
    gpu_peak_gb: float
    host_peak_gb: float


def main() -> None:
    options = parse_options()
    shape, device = SHAPES[options.shape], resolve_device(options.device)
    layers = options.layers or shape.num_layers
    if options.gpu_gb:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(options.gpu_gb * 1e9 / total)
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        write_random_model(folder / "model", shape, layers=layers, device=device)
        words = (options.samples + FURTHER_ROWS) * options.seqlen
        write_random_text(folder / "text.txt", vocab_size=shape.vocab_size, words=words)
        rows = [measure(folder, quality, layers, device, options) for quality in options.quality]
    if options.json:
        save_results(
            options.json,
            shape={"name": options.shape, **asdict(shape), "num_layers": layers},
            calibration=f"{options.samples}x{options.seqlen}",
            gpu_limit_gb=options.gpu_gb,
            rows=[asdict(row) for row in rows],
        )


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="internlm2.5-7b")
    parser.add_argument("--layers", type=int, help="so many of the shape's layers")
    parser.add_argument("--quality", action="append", choices=QUALITIES)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--seqlen", type=int, default=2048)
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--gpu-gb", type=float, help="use no more GPU memory than this (10^9 bytes)"
    )
    parser.add_argument("--folder", type=Path, help="where the model is written; needs its size")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.quality = options.quality or ["fast", "balanced"]
    return options


def measure(
    folder: Path, quality: str, layers: int, device: torch.device, options: argparse.Namespace
) -> Row:
    config = QuantConfig(
        quality=quality, calib_samples=options.samples, calib_seqlen=options.seqlen
    )
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    with host_peak() as host:
        report = quantize(
            folder / "model",
            folder / quality,
            config,
            calib_dataset=str(folder / "text.txt"),
            device=str(device),
        )
    total = time.perf_counter() - start
    on_gpu = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else 0
    row = Row(
        quality=quality,
        total_seconds=round(total, 1),
        seconds_a_block=round(total / layers, 2),
        seconds=report.seconds,
        gpu_peak_gb=round(on_gpu / 1e9, 2),
        host_peak_gb=round(host.bytes / 1e9, 2),
    )
    print(
        f"{quality:9} {row.total_seconds:7.1f} s, {row.seconds_a_block:.2f} s a block, "
        f"GPU {row.gpu_peak_gb:.1f} GB, host {row.host_peak_gb:.1f} GB",
        flush=True,
    )
    for stage, seconds in row.seconds.items():
        print(f"    {stage:20} {seconds:7.1f} s", flush=True)
    return row


if __name__ == "__main__":
    main()
