"""Quantized blocks that wait for the whole model to be tuned, as plain tensors for the journal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from awqkit.checkpoint import QuantizedWeight

PREFIX = "waiting."
PARTS = ("codes", "scales", "zeros")

StoredBlock = dict[str, Tensor | QuantizedWeight]


@dataclass(frozen=True, kw_only=True)
class WaitingBlock:
    """stored: what the checkpoint would get; offsets: see QuantizedBlock. Both on the host."""

    stored: StoredBlock
    offsets: dict[str, Tensor]


def to_tensors(blocks: Sequence[WaitingBlock]) -> dict[str, Tensor]:
    """By names that `from_tensors` understands; the order of a block's weights is kept in them."""
    tensors: dict[str, Tensor] = {}
    for layer, block in enumerate(blocks):
        for position, (name, weight) in enumerate(block.stored.items()):
            key = f"{PREFIX}{layer}|{position}|{name}"
            if isinstance(weight, QuantizedWeight):
                tensors |= {f"{key}|{part}": getattr(weight, part) for part in PARTS}
                tensors[f"{key}|offset"] = block.offsets[name]
            else:
                tensors[f"{key}|"] = weight
    return tensors


def from_tensors(tensors: Mapping[str, Tensor]) -> list[WaitingBlock]:
    """The blocks among the tensors of a journal, on the host."""
    found: dict[int, dict[int, tuple[str, dict[str, Tensor]]]] = {}
    for key, tensor in tensors.items():
        if key.startswith(PREFIX):
            layer, position, name, part = key.removeprefix(PREFIX).split("|")
            block = found.setdefault(int(layer), {})
            block.setdefault(int(position), (name, {}))[1][part] = tensor.cpu()
    return [
        _block([found[layer][place] for place in sorted(found[layer])]) for layer in sorted(found)
    ]


def _block(weights: Sequence[tuple[str, dict[str, Tensor]]]) -> WaitingBlock:
    stored: StoredBlock = {}
    offsets: dict[str, Tensor] = {}
    for name, parts in weights:
        if "offset" in parts:
            offsets[name] = parts["offset"]
            codes, scales, zeros = (parts[part] for part in PARTS)
            stored[name] = QuantizedWeight(codes, scales, zeros)
        else:
            stored[name] = parts[""]
    return WaitingBlock(stored=stored, offsets=offsets)
