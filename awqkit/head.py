"""The output head in 4 bits: an option, since it is the linear whose errors nothing follows."""

from __future__ import annotations

import torch
from torch import Tensor

from awqkit.checkpoint import Checkpoint, QuantizedWeight
from awqkit.checkpoint.canonical import LM_HEAD
from awqkit.checkpoint.layout import is_quantizable
from awqkit.errors import QuantizationError
from awqkit.search.affine import in_groups, min_max_grid, nearest_codes, to_quantized_weight

#: Rows of the vocabulary that are in float32 at once.
ROWS_AT_ONCE = 8192


def quantized_head(head: Tensor) -> QuantizedWeight:
    """head [vocab, hidden], rounded to nearest on the plain grid of each group of 128 inputs."""
    parts = [_rounded(rows.float()) for rows in head.split(ROWS_AT_ONCE)]
    return QuantizedWeight(
        codes=torch.cat([part.codes for part in parts]),
        scales=torch.cat([part.scales for part in parts]),
        zeros=torch.cat([part.zeros for part in parts]),
    )


def check_head(checkpoint: Checkpoint) -> None:
    """Raise QuantizationError where the head cannot be stored in 4 bits."""
    if checkpoint.config.tie_word_embeddings:
        raise QuantizationError(
            f"{checkpoint.folder} has one matrix for its embedding and its head "
            "(tie_word_embeddings), and engines look tokens up in it unquantized. "
            "Leave out --lm-head int4."
        )
    rows, columns = checkpoint.shape(LM_HEAD)
    if not is_quantizable(rows, columns):
        raise QuantizationError(
            f"{checkpoint.folder}: the head is [{rows}, {columns}], which groups of 128 inputs and "
            "words of 8 outputs do not divide. Leave out --lm-head int4."
        )


def _rounded(rows: Tensor) -> QuantizedWeight:
    grid = min_max_grid(rows)
    return to_quantized_weight(nearest_codes(in_groups(rows), grid).flatten(-2), grid)
