"""A quantized matrix in the very tensors that its format stores, for those who unpack elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from awqkit.checkpoint.layout import BITS, codes_per_word
from awqkit.checkpoint.packing import PackedFormat, pack, unpack
from awqkit.checkpoint.quantized_weight import QuantizedWeight


@dataclass(frozen=True, kw_only=True)
class PackedWeight:
    """tensors: by suffix, as in checkpoint.packing, scales in float16.

    rows: int64 [out], the stored rows that are this linear's, one after the other; None for all,
    in their order.  bits: of a code, as in QuantizedWeight.
    """

    packed_format: PackedFormat
    tensors: Mapping[str, Tensor]
    rows: Tensor | None = None
    bits: int = BITS

    @property
    def stored_shape(self) -> tuple[int, int]:
        """(out, in) of the tensors, of which `rows` may be a part."""
        if self.packed_format == "awq":
            in_features, words = self.tensors["qweight"].shape
            return words * codes_per_word(self.bits), in_features
        out_features, words = self.tensors["weight_packed"].shape
        return out_features, words * codes_per_word(self.bits)

    @property
    def out_features(self) -> int:
        return self.stored_shape[0] if self.rows is None else len(self.rows)

    @property
    def in_features(self) -> int:
        return self.stored_shape[1]

    def to(self, device: torch.device) -> PackedWeight:
        """The same on another device."""
        # Not asked for a CPU: where there is a GPU too, CUDA might be started for the answer.
        tensors = {
            suffix: tensor.to(device, non_blocking=device.type == "cuda" and tensor.is_pinned())
            for suffix, tensor in self.tensors.items()
        }
        rows = None if self.rows is None else self.rows.to(device)
        return replace(self, tensors=tensors, rows=rows)

    def unpack(self) -> QuantizedWeight:
        """Its integers and scales, on the tensors' device."""
        weight = unpack(self.tensors, self.packed_format, bits=self.bits)
        return weight if self.rows is None else weight.select(self.rows)


def pack_weight(weight: QuantizedWeight) -> PackedWeight:
    """The weight in a format's tensors; it must fit the formats (layout.is_quantizable)."""
    tensors = pack(weight, "compressed-tensors")
    return PackedWeight(packed_format="compressed-tensors", tensors=tensors, bits=weight.bits)
