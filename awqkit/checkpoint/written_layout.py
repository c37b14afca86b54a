"""Where canonical weights go in a checkpoint that is written: renamed, and fused where the family
has them in one matrix."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from awqkit.checkpoint.canonical import canonical_shapes
from awqkit.checkpoint.decoder_config import DecoderConfig
from awqkit.checkpoint.families import Family, Location
from awqkit.checkpoint.quantized_weight import QuantizedWeight

Weight = Tensor | QuantizedWeight


@dataclass(frozen=True)
class WrittenLayout:
    """The stored tensors of a model of this family, before any of them is packed."""

    config: DecoderConfig
    family: Family

    def location(self, name: str) -> Location:
        """Of a canonical tensor."""
        return self.family.locate_written(name, self.config)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the stored tensors, by their names, in the order of execution."""
        shapes: dict[str, tuple[int, ...]] = {}
        for name, shape in canonical_shapes(self.config).items():
            location = self.location(name)
            rows = shape[0] if location.num_rows is None else location.num_rows
            shapes[location.name] = (rows, *shape[1:])
        return shapes

    @cached_property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """The canonical tensors that each stored one is made of."""
        parts: dict[str, tuple[str, ...]] = {}
        for name in canonical_shapes(self.config):
            stored = self.location(name).name
            parts[stored] = (*parts.get(stored, ()), name)
        return parts

    def module(self, name: str) -> str:
        """The stored module of a canonical weight; of the head also where it is tied."""
        return self.location(name).name.removesuffix(".weight")


class Assembly:
    """Collects the parts of fused tensors until they are whole.

    A fused tensor never reaches beyond its block, so nothing waits between blocks.
    """

    def __init__(self, layout: WrittenLayout) -> None:
        self._layout = layout
        self._waiting: dict[str, dict[str, Weight]] = {}

    def add(self, name: str, weight: Weight) -> tuple[str, Weight] | None:
        """The stored name and the whole tensor, once this canonical weight completes it."""
        stored = self._layout.location(name).name
        waiting = self._waiting.setdefault(stored, {})
        waiting[name] = weight
        if len(waiting) < len(self._layout.parts[stored]):
            return None
        del self._waiting[stored]
        return stored, self._joined(stored, waiting)

    def _joined(self, stored: str, parts: dict[str, Weight]) -> Weight:
        quantized = {n: w for n, w in parts.items() if isinstance(w, QuantizedWeight)}
        if not quantized:
            dense = {n: w for n, w in parts.items() if isinstance(w, Tensor)}
            return self._rows(dense)
        if len(quantized) < len(parts):
            raise ValueError(f"{stored} cannot be half quantized: {', '.join(sorted(parts))}")
        (bits,) = {weight.bits for weight in quantized.values()}
        return QuantizedWeight(
            codes=self._rows({n: w.codes for n, w in quantized.items()}),
            scales=self._rows({n: w.scales for n, w in quantized.items()}),
            zeros=self._rows({n: w.zeros for n, w in quantized.items()}),
            bits=bits,
        )

    def _rows(self, parts: dict[str, Tensor]) -> Tensor:
        """The parts [rows of each, …] at their places in the stored tensor."""
        locations = {name: self._layout.location(name) for name in parts}
        if len(parts) == 1 and all(place.rows is None for place in locations.values()):
            return next(iter(parts.values()))
        first = next(iter(parts.values()))
        num_rows = next(iter(locations.values())).num_rows
        assert num_rows is not None
        whole = first.new_empty((num_rows, *first.shape[1:]))
        for name, part in parts.items():
            rows = locations[name].rows
            assert rows is not None
            whole[torch.cat([torch.arange(r.start, r.stop) for r in rows]).to(part.device)] = part
        return whole
