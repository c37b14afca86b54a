"""The two matrices over the vocabulary, embedding and head, in 8 or 4 bits: an option for each.

They are rounded to nearest, since nothing that is searched follows their errors.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from awqkit.checkpoint import Checkpoint, QuantizedWeight
from awqkit.checkpoint.canonical import EMBEDDING, LM_HEAD
from awqkit.checkpoint.layout import BITS, GROUP_SIZE, is_quantizable, max_code
from awqkit.config import QuantConfig
from awqkit.errors import QuantizationError
from awqkit.search.affine import in_groups, min_max_grid, nearest_codes, to_quantized_weight

#: Rows of the vocabulary that are in float32 at once.
ROWS_AT_ONCE = 8192


class Vocabulary:
    """Embedding and head of a conversion, [vocab, hidden]: the source's, and what is stored."""

    def __init__(self, checkpoint: Checkpoint, config: QuantConfig, device: torch.device) -> None:
        """device: where they are rounded."""
        self._checkpoint, self._config, self._device = checkpoint, config, device

    @property
    def is_tied(self) -> bool:
        """Whether one matrix is both."""
        return self._checkpoint.config.tie_word_embeddings

    def embedding(self) -> Tensor:
        """The source's, in host memory."""
        return self._checkpoint.tensor(EMBEDDING)

    def head(self) -> Tensor:
        """The source's, in host memory."""
        return self.embedding() if self.is_tied else self._checkpoint.tensor(LM_HEAD)

    def running_embedding(self, source: Tensor) -> Tensor | QuantizedWeight:
        """What the quantized model looks tokens up in, on the device of source.

        source: `embedding`; it is given back where the embedding stays dense.
        """
        rounded = self._rounded_embedding
        return source if rounded is None else rounded.to(source.device)

    def running_head(self, source: Tensor, dtype: torch.dtype) -> Tensor:
        """What the quantized model computes with in the place of source, on its device.

        source: `head`; it is given back where the head stays dense.
        """
        rounded = self._rounded_head
        return source if rounded is None else rounded.to(source.device).dequantize(dtype)

    def stored_embedding(self) -> Tensor | QuantizedWeight:
        """In host memory."""
        rounded = self._rounded_embedding
        return self._in_stored_dtype(self.embedding()) if rounded is None else rounded

    def stored_head(self) -> Tensor | QuantizedWeight:
        """In host memory; the embedding where one matrix is both."""
        rounded = self._rounded_head
        return self._in_stored_dtype(self.head()) if rounded is None else rounded

    @cached_property
    def _rounded_embedding(self) -> QuantizedWeight | None:
        bits = self._config.embedding_bits
        return None if bits is None else rounded_matrix(self.embedding(), bits, self._device)

    @cached_property
    def _rounded_head(self) -> QuantizedWeight | None:
        if self.is_tied:
            return self._rounded_embedding
        bits = self._config.head_bits
        return None if bits is None else rounded_matrix(self.head(), bits, self._device)

    def _in_stored_dtype(self, matrix: Tensor) -> Tensor:
        return matrix.to(getattr(torch, self._config.dtype))


def rounded_matrix(matrix: Tensor, bits: int, device: torch.device) -> QuantizedWeight:
    """matrix [vocab, hidden] on the plain grid of each group of 128, rounded to nearest.

    device: where it is rounded; the result is in host memory.
    """
    parts = [_rounded(rows.to(device), bits) for rows in matrix.split(ROWS_AT_ONCE)]
    return QuantizedWeight(
        codes=torch.cat([part.codes for part in parts]),
        scales=torch.cat([part.scales for part in parts]),
        zeros=torch.cat([part.zeros for part in parts]),
        bits=bits,
    )


def check_vocabulary(checkpoint: Checkpoint, config: QuantConfig) -> None:
    """Raise QuantizationError where embedding or head cannot be stored as the config wants."""
    if checkpoint.config.tie_word_embeddings and config.lm_head not in ("dense", config.embeddings):
        raise QuantizationError(
            f"{checkpoint.folder} has one matrix for its embedding and its head "
            f"(tie_word_embeddings), so that one cannot be quantized without the other. Give "
            f"--embeddings {config.lm_head} instead of --lm-head, which is for both here."
        )
    for option, form in (("--embeddings", config.embeddings), ("--lm-head", config.lm_head)):
        rows, columns = checkpoint.shape(EMBEDDING)
        if form != "dense" and not is_quantizable(rows, columns):
            raise QuantizationError(
                f"{checkpoint.folder}: embedding and head are [{rows}, {columns}], which groups of "
                f"{GROUP_SIZE} along the hidden size and words of 8 rows do not divide. Leave out "
                f"{option} {form}."
            )


def check_repackable(checkpoint: Checkpoint, config: QuantConfig) -> None:
    """Raise QuantizationError where a quantized checkpoint's ends do not fit config.format."""
    if config.format != "awq":
        return
    ends = {EMBEDDING: (None,), LM_HEAD: (None, BITS)}
    for name in checkpoint.names():
        if name in ends and (bits := checkpoint.bits(name)) not in ends[name]:
            raise QuantizationError(
                f"{checkpoint.folder}: {name} is stored in {bits} bits, for which the awq form has "
                "no place: it knows 4-bit linears alone. Only --format compressed-tensors holds it."
            )


def _rounded(rows: Tensor, bits: int) -> QuantizedWeight:
    last = max_code(bits)
    weight = rows.float()
    grid = min_max_grid(weight, last)
    codes = nearest_codes(in_groups(weight), grid, last).flatten(-2)
    return to_quantized_weight(codes, grid, bits).to(torch.device("cpu"))
