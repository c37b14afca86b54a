"""awqkit-runtime perplexity: how well a model predicts a text, and how far it is from another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from awqkit_runtime.commands.console import paragraph_errors, progress_bar, working
from awqkit_runtime.commands.options import loading_options, quant_policy_option
from awqkit_runtime.config import parse_quant_policy
from awqkit_runtime.errors import CheckpointError, ConfigError, TextError

if TYPE_CHECKING:
    from torch import Tensor

    from awqkit.checkpoint import Checkpoint
    from awqkit_runtime.text_scores import PagedReader, TextScore

_DEFAULT_SEQLEN = 2048


@click.command(short_help="Measure the perplexity of a text under MODEL.")
@click.argument("model")
@click.option("--text", required=True, metavar="FILE", help="A text in UTF-8.")
@click.option(
    "--against",
    metavar="MODEL",
    help="Also measure this model, whose cache is not quantized, and the KL divergence from it.",
)
@click.option(
    "--seqlen",
    type=click.IntRange(min=2),
    help=f"Tokens of a chunk.  [default: {_DEFAULT_SEQLEN}, or the model's maximum below it]",
)
@click.option("--max-tokens", type=click.IntRange(min=2), help="Use no more of the text.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@quant_policy_option
@loading_options
@paragraph_errors
def perplexity(
    model: str, text: str, against: str | None, *, as_json: bool, **options: Any
) -> None:
    """Measure the perplexity of a text under MODEL, a folder or hub id.

    The text is encoded as a whole and cut into chunks that do not overlap; of each chunk all
    tokens but the first are predicted. Keys and values go through the paged cache, so that
    --quant-policy counts.
    """
    from awqkit.checkpoint import open_checkpoint

    policy = parse_quant_policy(options["quant_policy"])
    content = _read_text(text)
    checkpoint = open_checkpoint(model, model_format=options["model_format"])
    other = None if against is None else open_checkpoint(against)
    seqlen = _seqlen([c for c in (checkpoint, other) if c is not None], options["seqlen"])
    ids = _encode(content, checkpoint, other)[: options["max_tokens"]]
    reader = _load(checkpoint, model, policy, seqlen, options)
    reference = None if other is None else _load(other, str(against), 0, seqlen, options)
    score = _score(reader, ids, seqlen, reference)
    figures = {
        "model": model,
        "text": text,
        "quant_policy": policy,
        "seqlen": seqlen,
        "tokens": len(ids),
        "predicted": score.predicted,
        "nll": score.negative_log_likelihood / score.predicted,
        "perplexity": score.perplexity,
        "against": against,
        "against_perplexity": score.reference_perplexity,
        "kl": score.kl,
    }
    click.echo(json.dumps(figures, indent=1) if as_json else _as_text(figures))


def _as_text(figures: dict[str, Any]) -> str:
    lines = [
        f"Text        {figures['text']}: {figures['tokens']:,} tokens in chunks of "
        f"{figures['seqlen']:,}, {figures['predicted']:,} predicted",
        f"Loss        {figures['nll']:.5f} nats per token",
        f"Perplexity  {figures['perplexity']:.4f}",
    ]
    if figures["kl"] is not None:
        lines += [
            f"KL          {figures['kl']:.6f} nats per token from {figures['against']}, "
            f"whose perplexity is {figures['against_perplexity']:.4f}",
        ]
    return "\n".join(lines)


def _read_text(name: str) -> str:
    path = Path(name).expanduser()
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise TextError(
            f"{name} is not UTF-8 (byte {error.start} is wrong), so it is no plain text; save it "
            "as UTF-8, or name another file."
        ) from error
    except OSError as error:
        raise TextError(
            f"The text {name} cannot be read: {error.strerror}. Check the name."
        ) from error


def _encode(content: str, checkpoint: Checkpoint, other: Checkpoint | None) -> Tensor:
    """Token ids, int64 [tokens], that mean the same to both models."""
    import torch

    from awqkit.checkpoint.tokenizer import encode_prompt, load_tokenizer

    tokenizer = load_tokenizer(checkpoint.folder)
    ids = encode_prompt(tokenizer, content)
    if len(ids) < 2:
        raise TextError(
            f"The text has {len(ids)} tokens; it takes two to predict one. Name a longer text."
        )
    if max(ids) >= checkpoint.config.vocab_size:
        raise CheckpointError(
            f"The tokenizer of {checkpoint.folder} gives id {max(ids)}, but the model has "
            f"{checkpoint.config.vocab_size} embeddings. Put the model's own tokenizer there."
        )
    if other is not None:
        theirs = load_tokenizer(other.folder)
        same = theirs.vocabulary == tokenizer.vocabulary and encode_prompt(theirs, content) == ids
        if not same or other.config.vocab_size != checkpoint.config.vocab_size:
            raise ConfigError(
                f"{checkpoint.folder} and {other.folder} have different vocabularies or "
                "tokenizers, so their predictions cannot be compared. Name two forms of one model."
            )
    return torch.tensor(ids)


def _seqlen(checkpoints: list[Checkpoint], wanted: int | None) -> int:
    from awqkit_runtime.models.loader import longest_session

    if wanted is None:
        longest = [checkpoint.config.max_position_embeddings for checkpoint in checkpoints]
        return min(_DEFAULT_SEQLEN, *longest)
    for checkpoint in checkpoints:
        limit = longest_session(checkpoint.config)
        if limit is not None and wanted > limit:
            raise ConfigError(
                f"--seqlen is {wanted}, but {checkpoint.folder} was made for at most {limit} "
                "tokens; ask for no more than that."
            )
    return wanted


def _load(
    checkpoint: Checkpoint, name: str, quant_policy: int | str, seqlen: int, options: dict[str, Any]
) -> PagedReader:
    from awqkit_runtime.cache.page_format import PageFormat
    from awqkit_runtime.engine.key_choice import key_frame_for
    from awqkit_runtime.models.loader import load_decoder
    from awqkit_runtime.text_scores import PagedReader

    stretched = seqlen > checkpoint.config.max_position_embeddings
    with working(f"Loading {name}"):
        decoder = load_decoder(
            checkpoint,
            device=options["device"],
            dtype=options["dtype"],
            session_len=seqlen if stretched else None,
        )
        page_format = PageFormat.for_policy(decoder.config, quant_policy, decoder.dtype)
        key_frame = key_frame_for(decoder, page_format)
    return PagedReader(decoder, quant_policy=quant_policy, seqlen=seqlen, key_frame=key_frame)


def _score(
    reader: PagedReader, ids: Tensor, seqlen: int, reference: PagedReader | None
) -> TextScore:
    from awqkit_runtime.text_scores import score_text

    with progress_bar("Reading", len(ids)) as advance:
        return score_text(reader, ids, seqlen=seqlen, reference=reference, on_chunk=advance)
