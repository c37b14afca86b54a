"""What quantizing half a block is about."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from awqkit.calibration.output_moments import OutputMoments
from awqkit.expert_tokens import StarvedExpert
from awqkit.half_runners import HalfOfBlock
from awqkit.search.sites import Site


@dataclass(frozen=True, kw_only=True)
class HalfTask:
    """Half a block. sites: those that can be quantized, in the order of execution.

    original: the rows that enter it in the unquantized model, or None where nothing aims at them.
    outputs: what the block's output minds of each linear's, or nothing.
    offsets: by weight, filled where codes are to be tuned: what rounding_offsets tells.
    """

    layer: int
    run: HalfOfBlock
    sites: tuple[Site, ...]
    original: Tensor | None = None
    outputs: OutputMoments = field(default_factory=dict)
    offsets: dict[str, Tensor] = field(default_factory=dict)
    starved: tuple[StarvedExpert, ...] = ()
