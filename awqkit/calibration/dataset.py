"""Calibration rows: text, encoded and packed into rows of exactly as many tokens as asked for."""

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from awqkit.calibration.chat_text import chat_renderer
from awqkit.calibration.sources import open_source
from awqkit.checkpoint.tokenizer import TextTokenizer
from awqkit.errors import CalibrationError

# Shorter rows say nothing about attention.
MIN_SEQLEN = 8
# Text goes through the tokenizer in batches of this size, which bounds what is encoded in vain.
BATCH_DOCUMENTS = 64
BATCH_CHARACTERS = 1 << 18


@dataclass(frozen=True, kw_only=True)
class CalibrationRows:
    """What a model is calibrated on.

    Attributes:
        tokens: int64 [samples, seqlen].
        held_out: int64 [0..held_out, seqlen], from other documents, as far as the text went.
        digest: SHA-256 of `tokens`, hexadecimal (see `token_digest`).
        source: where the text came from, in a few words.
    """

    tokens: Tensor
    held_out: Tensor
    digest: str
    source: str


def calibration_rows(
    source: str,
    *,
    tokenizer: TextTokenizer,
    samples: int,
    seqlen: int,
    seed: int,
    max_length: int,
    held_out: int = 0,
) -> CalibrationRows:
    """Packs text into `samples` rows of `seqlen` tokens, and up to `held_out` more.

    The documents are drawn in an order given by the seed, encoded one by one with whatever the
    tokenizer adds by default (such as a first token), and laid end to end; rows are cut from that
    without padding, overlap or gaps. No more text is read than the rows need.

    Args:
        source: pileval, c4, wikitext2, a local file, or a hub id `org/name[:config[:split]]`.
        max_length: the most tokens in a row that the model was made for.

    Raises:
        CalibrationError: the numbers do not fit the model, the source is unknown, unreachable or
            broken, or it has too little text.
    """
    text = open_source(source, render_chat=chat_renderer(tokenizer))
    check_row_sizes(samples=samples, seqlen=seqlen, max_length=max_length)
    encoded = encoded_documents(text.documents(seed), tokenizer)
    needed = samples * seqlen
    tokens = _take_tokens(encoded, needed)
    if len(tokens) < needed:
        raise _too_little(text.description, len(tokens), samples=samples, seqlen=seqlen)
    rows = _rows(tokens, samples, seqlen)
    further = _take_tokens(encoded, held_out * seqlen)
    return CalibrationRows(
        tokens=rows,
        held_out=_rows(further, min(held_out, len(further) // seqlen), seqlen),
        digest=token_digest(rows),
        source=text.description,
    )


def check_row_sizes(*, samples: int, seqlen: int, max_length: int) -> None:
    """Refuses numbers of rows and tokens that no source of text could satisfy.

    Raises:
        CalibrationError: no rows, or rows that are too short or longer than the model's maximum.
    """
    if samples < 1:
        raise CalibrationError(
            f"Calibration on {samples} rows is not possible: --calib-samples must be at least 1."
        )
    if seqlen > max_length:
        raise CalibrationError(
            f"Calibration rows of {seqlen} tokens are longer than the model's maximum of "
            f"{max_length} tokens. Give --calib-seqlen {max_length} or less."
        )
    if seqlen < MIN_SEQLEN:
        raise CalibrationError(
            f"Calibration rows of {seqlen} tokens are too short to tell anything: --calib-seqlen "
            f"must be at least {MIN_SEQLEN}, and at most the model's maximum of {max_length}."
        )


def token_digest(tokens: Tensor) -> str:
    """SHA-256 over dtype, shape and bytes of a tensor, row by row, hexadecimal."""
    digest = hashlib.sha256(f"{tokens.dtype} {tuple(tokens.shape)}\n".encode())
    digest.update(tokens.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def encoded_documents(documents: Iterable[str], tokenizer: TextTokenizer) -> Iterator[list[int]]:
    """Token ids of each document, in order, encoded a batch at a time."""
    bos = tokenizer.bos_token_id
    for batch in _batches(documents):
        # Half of a surrogate pair may stand in JSON, but is no text that can be encoded.
        texts = [text.encode("utf-8", "replace").decode("utf-8") for text in batch]
        for ids in tokenizer.encode_batch(texts):
            # A chat template writes the first token, and the tokenizer adds it once more.
            yield ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document)
        if len(batch) >= BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _take_tokens(encoded: Iterator[list[int]], wanted: int) -> list[int]:
    """The ids of whole documents until there are `wanted`, or no more documents."""
    tokens: list[int] = []
    while len(tokens) < wanted and (ids := next(encoded, None)) is not None:
        tokens.extend(ids)
    return tokens


def _rows(tokens: list[int], count: int, seqlen: int) -> Tensor:
    used = list(itertools.islice(tokens, count * seqlen))
    return torch.tensor(used, dtype=torch.int64).reshape(count, seqlen)


def _too_little(name: str, found: int, *, samples: int, seqlen: int) -> CalibrationError:
    rows = found // seqlen
    fits = f"--calib-samples {rows} would fit" if rows else f"it is less than one row of {seqlen}"
    return CalibrationError(
        f"The calibration data {name} is too short: it has {found} tokens, and {samples} rows of "
        f"{seqlen} need {samples * seqlen}. Give more text, or lower --calib-samples or "
        f"--calib-seqlen ({fits}); --calib-dataset self samples as much text as is needed."
    )
