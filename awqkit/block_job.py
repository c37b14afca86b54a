"""What a block's quantization is given, and what it tells."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from awqkit.checkpoint import DecoderConfig
from awqkit.decoder import RotaryTables
from awqkit.expert_tokens import StarvedExpert
from awqkit.ranks.ranks import Ranks
from awqkit.row_share import RowShare
from awqkit.site_picture import SitePicture

#: A block's tensors, named relative to the layer, in the dtype that each was stored in, or float32
#: where a scale was folded into it.
Block = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class BlockJob:
    """What stays the same from block to block."""

    config: DecoderConfig
    rotary: RotaryTables
    device: torch.device
    compute_dtype: torch.dtype
    stored_dtype: torch.dtype
    search_scale: bool
    #: Whether rounding aims at what the unquantized model, beside, has there, and at what the
    #: block's output minds.
    aims_at_original: bool
    #: Whether codes are tuned behind the last block, which begins from what was rounded.
    tunes: bool
    batch_size: int
    #: The processes that share the calibration rows, and the rows that this one holds.
    ranks: Ranks
    share: RowShare
    on_site: Callable[[SiteResult], None]
    #: Times what is done in its context, under the name of a stage.
    timed: Callable[[str], AbstractContextManager[None]]


@dataclass(frozen=True, kw_only=True)
class SiteResult:
    """Output errors are relative to the output's own energy, on the judging rows.

    Of a mixture of experts, "gate_up" and "down" each tell of all experts together.
    """

    layer: int
    site: str
    scale: str
    kept: tuple[str, ...]
    error_nearest: float
    error: float
    picture: SitePicture
    #: Told with "gate_up".
    starved: tuple[StarvedExpert, ...] = ()
