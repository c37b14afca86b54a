"""Checkpoints that GPTQ tools write, read as the same integers in our own form.

For a weight [out, in]: qweight int32 [in/8, out], eight consecutive inputs in a word; qzeros int32
[in/128, out/8], eight consecutive outputs in a word; scales [in/128, out]; g_idx int32 [in], the
group of each input. Version 1 stores each zero point less one; version 2 stores it as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from awqkit.checkpoint.errors import CheckpointError, UnsupportedModelError
from awqkit.checkpoint.json_file import read_json_object
from awqkit.checkpoint.layout import GROUP_SIZE, MAX_CODE, SEQUENTIAL_ORDER
from awqkit.checkpoint.packing import pack_words, unpack_words
from awqkit.checkpoint.placement import Placement
from awqkit.checkpoint.safetensors_file import StoredTensor, read_tensor

#: Where early tools put what is now config.json's quantization_config.
SIDECAR_FILE = "quantize_config.json"


def read_sidecar(folder: Path, tensors: Iterable[str]) -> dict[str, Any] | None:
    """What SIDECAR_FILE says, as a quantization_config; None where nothing is packed."""
    path = folder / SIDECAR_FILE
    if not path.is_file() or not any(name.endswith(".qweight") for name in tensors):
        return None
    return {"quant_method": "gptq", **read_json_object(path)}


def as_compressed_tensors(tensors: Mapping[str, Tensor], *, zero_offset: int) -> dict[str, Tensor]:
    """The tensors of a linear, by suffix, in the form of `compressed-tensors`.

    zero_offset: what was taken from the zero points before they were stored.
    """
    zeros = unpack_words(tensors["qzeros"], SEQUENTIAL_ORDER) + zero_offset
    return {
        "weight_packed": tensors["qweight"].T.contiguous(),
        "weight_scale": tensors["scales"].T.contiguous(),
        "weight_zero_point": pack_words(zeros, SEQUENTIAL_ORDER).T.contiguous(),
    }


def require_plain(tensors: Mapping[str, StoredTensor], placements: Mapping[str, Placement]) -> None:
    """Raise UnsupportedModelError for what groups of consecutive inputs and 4 bits cannot hold."""
    packed = {
        id(placement.entries): placement
        for placement in placements.values()
        if placement.packed_format == "gptq"
    }
    for placement in packed.values():
        _refuse_act_order(placement.entries.get("g_idx"))
        if placement.zero_offset:
            _refuse_zero_beyond_the_codes(placement.entries["qzeros"])
    used = {entry.name for place in placements.values() for entry in place.entries.values()}
    for name in surplus_biases(tensors):
        if name not in used and bool(read_tensor(tensors[name]).any()):
            raise CheckpointError(
                f"{tensors[name].path} holds {name}, which the model has no place for according to "
                "config.json. Config and weights do not belong together: fetch both anew."
            )


def surplus_biases(tensors: Iterable[str]) -> set[str]:
    """Biases of packed linears: early tools store one for each, zeros where the model has none."""
    names = set(tensors)
    stems = {name.removesuffix("qweight") for name in names if name.endswith(".qweight")}
    return {stem + "bias" for stem in stems if stem + "bias" in names}


def _refuse_act_order(entry: StoredTensor | None) -> None:
    if entry is None:
        return
    groups = read_tensor(entry)
    if not torch.equal(groups, (torch.arange(len(groups)) // GROUP_SIZE).to(groups)):
        raise UnsupportedModelError(
            f"{entry.path}: {entry.name} does not go through the groups in order. The model was "
            "quantized with act-order (desc_act), whose groups are no consecutive inputs, so that "
            "no other form can hold it. Start from the model before it was quantized."
        )


def _refuse_zero_beyond_the_codes(entry: StoredTensor) -> None:
    # Some tools read a stored 15 as 16, others as 0: there is no telling which was meant.
    if bool((unpack_words(read_tensor(entry), SEQUENTIAL_ORDER) == MAX_CODE).any()):
        raise UnsupportedModelError(
            f"{entry.path}: {entry.name} holds a zero point of 16, which is beyond the codes 0 to "
            f"{MAX_CODE} and has no place in 4 bits. Start from the model before it was quantized, "
            "or from a version in GPTQ's second format (gptq_v2)."
        )
