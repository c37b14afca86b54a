"""What awqkit-inspect prints about a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from awqkit.checkpoint import Checkpoint, open_checkpoint
from awqkit.console import human_bytes
from awqkit.report import REPORT_NAME


def show(path: str) -> None:
    """Print format, shape and sizes of the checkpoint at path, and its report's figures."""
    checkpoint = open_checkpoint(path)
    console = Console()
    console.print(_overview(checkpoint))
    report = read_report(checkpoint.folder)
    if report is not None:
        _show_figures(console, report)


def read_report(folder: Path) -> dict[str, Any] | None:
    """The report that a quantization left in the folder, or None where there is none to read."""
    try:
        document = json.loads((folder / REPORT_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None


def _overview(checkpoint: Checkpoint) -> Table:
    decoder = checkpoint.config
    quantized = [name for name in checkpoint.names() if checkpoint.is_quantized(name)]
    linears = [name for name in checkpoint.names() if name.endswith("_proj.weight")]
    table = Table(show_header=False)
    table.add_row("folder", str(checkpoint.folder))
    table.add_row("format", checkpoint.format)
    table.add_row("family", str(checkpoint.raw_config.get("model_type")))
    table.add_row(
        "shape",
        f"{decoder.num_layers} blocks, hidden {decoder.hidden_size}, "
        f"{decoder.num_heads} heads over {decoder.num_kv_heads} key-value heads of "
        f"{decoder.head_dim}, intermediate {decoder.intermediate_size}, "
        f"vocabulary {decoder.vocab_size}",
    )
    table.add_row("context", str(decoder.max_position_embeddings))
    table.add_row("rotary", f"{decoder.rope.kind}, base {decoder.rope.theta:g}")
    table.add_row("weights", human_bytes(checkpoint.weight_bytes()))
    table.add_row("quantized", f"{len(quantized)} of {len(linears)} linears in the blocks")
    left = [name for name in linears if name not in quantized]
    if quantized and left:
        table.add_row("unquantized", ", ".join(name.removesuffix(".weight") for name in left))
    return table


def _show_figures(console: Console, report: dict[str, Any]) -> None:
    config, text = report.get("config", {}), report.get("calibration", {})
    console.print(
        f"Quantized by awqkit {report.get('version')}: quality {config.get('quality')}, "
        f"{text.get('samples')} × {text.get('seqlen')} tokens, {text.get('source')} "
        f"(sha256 {str(text.get('digest'))[:12]}…)"
    )
    scores = report.get("evaluation")
    if scores:
        console.print(
            f"Held-out perplexity {scores['original']['perplexity']:.3f} → "
            f"{scores['quantized']['perplexity']:.3f}; KL {scores['quantized']['kl']:.5f} nats "
            f"(round to nearest: {scores['nearest']['kl']:.5f})"
        )
