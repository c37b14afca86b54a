"""The values of one canonical tensor, read from where it was placed and checked for soundness."""

from __future__ import annotations

import torch
from torch import Tensor

from awqkit.checkpoint.errors import CheckpointError
from awqkit.checkpoint.gptq import as_compressed_tensors
from awqkit.checkpoint.packed_weight import PackedWeight
from awqkit.checkpoint.placement import Placement
from awqkit.checkpoint.safetensors_file import StoredTensor, TensorReader, read_tensor

#: Half of FP16's smallest step: the most by which a stored scale may move on its way to FP16.
SCALE_TOLERANCE = 2.0**-25


def read_dense(placement: Placement, read: TensorReader = read_tensor) -> Tensor:
    """A dense tensor in its stored dtype; CheckpointError if it holds NaN or infinity."""
    (entry,) = placement.entries.values()
    tensor = read(entry, placement.rows)
    _require_finite(tensor, entry)
    return tensor


def read_quantized(placement: Placement, read: TensorReader = read_tensor) -> PackedWeight:
    """A packed linear; CheckpointError for scales that are broken or that FP16 cannot hold."""
    assert placement.packed_format is not None
    tensors = {suffix: read(entry, None) for suffix, entry in placement.entries.items()}
    for suffix in ("scales", "weight_scale"):
        if suffix in tensors:
            tensors[suffix] = _half_scales(tensors[suffix], placement.entries[suffix])
    rows = None
    if placement.rows is not None:
        rows = torch.cat([torch.arange(r.start, r.stop) for r in placement.rows])
    packed_format = placement.packed_format
    if packed_format == "gptq":
        tensors = as_compressed_tensors(tensors, zero_offset=placement.zero_offset)
        packed_format = "compressed-tensors"
    weight = PackedWeight(
        packed_format=packed_format, tensors=tensors, rows=rows, bits=placement.bits
    )
    if "weight_shape" in tensors:
        _check_claimed_shape(weight, placement.entries["weight_shape"])
    return weight


def _check_claimed_shape(weight: PackedWeight, entry: StoredTensor) -> None:
    claimed = weight.tensors["weight_shape"].tolist()
    if claimed != list(weight.stored_shape):
        raise CheckpointError(
            f"{entry.path}: tensor {entry.name} says {claimed}, but the packed codes are "
            f"{list(weight.stored_shape)}. The file is damaged: fetch it again."
        )


def _half_scales(scales: Tensor, entry: StoredTensor) -> Tensor:
    """Scales in float16, provided that this keeps the weights' values.

    Below FP16's normal range scales may move by SCALE_TOLERANCE, and so a 4-bit weight by at most
    15 times that (4.5e-7), one of 8 bits by 255 times that (7.6e-6): other checkpoints in BF16 have
    such scales in groups that hardly matter.
    """
    _require_finite(scales, entry)
    if scales.dtype == torch.float16:
        return scales
    half = scales.half()
    change = (half.float() - scales.float()).abs()
    is_tiny = scales.abs() < torch.finfo(torch.float16).tiny
    if not bool(((change == 0) | (is_tiny & (change <= SCALE_TOLERANCE))).all()):
        raise CheckpointError(
            f"{entry.path}: tensor {entry.name} holds scales that FP16 cannot represent, so the "
            "weights would change. Quantize the model anew with scales in FP16."
        )
    return half


def _require_finite(tensor: Tensor, entry: StoredTensor) -> None:
    if not tensor.numel():
        return
    # The extremes carry any NaN or infinity, and need no temporary of the tensor's size.
    low, high = torch.aminmax(tensor)
    if not (low.isfinite() and high.isfinite()):
        raise CheckpointError(
            f"{entry.path}: tensor {entry.name} holds NaN or infinite values, so the model is "
            "broken. Fetch the file again; if it was trained or merged here, look there."
        )
