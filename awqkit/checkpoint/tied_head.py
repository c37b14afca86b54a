"""A head that is stored although config.json ties it to the embedding."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from awqkit.checkpoint.canonical import EMBEDDING, LM_HEAD
from awqkit.checkpoint.decoder_config import DecoderConfig
from awqkit.checkpoint.errors import CheckpointError
from awqkit.checkpoint.families.family import Family
from awqkit.checkpoint.safetensors_file import StoredTensor, read_tensor

#: Rows that are compared at once, so that a large vocabulary is never in memory as a whole.
ROWS_AT_ONCE = 4096


def require_tied(
    tensors: Mapping[str, StoredTensor], config: DecoderConfig, family: Family
) -> None:
    """Raise CheckpointError where a stored head contradicts the embedding that it is tied to.

    Some tools store the shared matrix twice; that is harmless as long as both copies are equal.
    """
    if not config.tie_word_embeddings:
        return
    head = tensors.get(family.locate(LM_HEAD, config).name)
    if head is None:
        return
    embedding = tensors.get(family.locate(EMBEDDING, config).name)
    if embedding is None:
        raise CheckpointError(
            f"config.json ties the head to the embedding (tie_word_embeddings), which is "
            f"quantized, but {head.path} holds an unquantized {head.name} besides. Remove the "
            "stray one."
        )
    if not _equal(head, embedding):
        raise CheckpointError(
            f"config.json ties {embedding.name} and {head.name} (tie_word_embeddings), but "
            f"{head.path} holds a {head.name} of its own with other values. Set "
            "tie_word_embeddings to false if the model was trained with both; otherwise remove "
            "the stray one."
        )


def _equal(first: StoredTensor, second: StoredTensor) -> bool:
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    starts = range(0, first.shape[0], ROWS_AT_ONCE)
    slices = [range(start, min(start + ROWS_AT_ONCE, first.shape[0])) for start in starts]
    return all(
        torch.equal(
            read_tensor(first, [rows]).view(torch.uint8),
            read_tensor(second, [rows]).view(torch.uint8),
        )
        for rows in slices
    )
