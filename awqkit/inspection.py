"""What awqkit-inspect prints about a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console

from awqkit.checkpoint import Checkpoint, ExpertsConfig, open_checkpoint
from awqkit.checkpoint.canonical import EMBEDDING, LM_HEAD
from awqkit.console import human_bytes
from awqkit.report import read_document


def show(path: str) -> None:
    """Print format, shape and sizes of the checkpoint at path, and its report's figures."""
    checkpoint = open_checkpoint(path)
    console = Console()
    for what, figure in _overview(checkpoint):
        console.print(f"{what:10}{figure}", soft_wrap=True, highlight=False, markup=False)
    report = read_document(checkpoint.folder)
    if report is not None:
        _show_figures(console, report)


def _overview(checkpoint: Checkpoint) -> Iterator[tuple[str, str]]:
    """Lines of (what, figure)."""
    decoder = checkpoint.config
    quantized = {name for name in checkpoint.names() if checkpoint.is_quantized(name)}
    linears = [name for name in checkpoint.names() if name.endswith("_proj.weight")]
    yield "folder", str(checkpoint.folder)
    yield "format", checkpoint.format
    yield "family", str(checkpoint.raw_config.get("model_type"))
    yield (
        "blocks",
        f"{decoder.num_layers}, hidden {decoder.hidden_size}, "
        + (f"intermediate {decoder.intermediate_size}"),
    )
    if decoder.experts is not None:
        yield "experts", _experts(decoder.experts)
    yield (
        "heads",
        f"{decoder.num_heads} over {decoder.num_kv_heads} key-value heads of "
        + (f"{decoder.head_dim}"),
    )
    yield (
        "vocab",
        f"{decoder.vocab_size} tokens"
        + (", embeddings tied" if decoder.tie_word_embeddings else ""),
    )
    yield "context", f"{decoder.max_position_embeddings} tokens"
    yield "rotary", f"{decoder.rope.kind}, base {decoder.rope.theta:g}"
    yield "weights", human_bytes(checkpoint.weight_bytes())
    packed = len(quantized.intersection(linears))
    yield "int4", f"{packed} of {len(linears)} linears in the blocks"
    for what, name in (("embedding", EMBEDDING), ("head", LM_HEAD)):
        if quantized and name in checkpoint.names():
            bits = checkpoint.bits(name)
            also = ", the head too" if name == EMBEDDING and decoder.tie_word_embeddings else ""
            yield what, ("dense" if bits is None else f"int{bits}") + also
    left = [name.removesuffix(".weight") for name in linears if name not in quantized]
    if quantized and left:
        yield "not int4", ", ".join(left)


def _experts(experts: ExpertsConfig) -> str:
    text = (
        f"{experts.num_experts} in {len(experts.layers)} blocks, {experts.experts_per_token} for a "
        f"token, intermediate {experts.intermediate_size}"
    )
    if experts.shared_intermediate_size is not None:
        text += f"; one shared by all tokens, intermediate {experts.shared_intermediate_size}"
    return text


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
