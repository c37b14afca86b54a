"""Fold a site's scale into the op before it, so that the model computes the same function."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from awqkit.checkpoint import DecoderConfig
from awqkit.search.sites import Site, feeder_scale


def realised_norm_scale(
    norm_weight: Tensor, scale: Tensor, dtype: torch.dtype, *, unit_offset: bool = False
) -> Tensor:
    """The scale that remains once the norm is stored in dtype: w / stored(w / scale).

    1 where the norm's factor is 0 (the channel never fires) or the division leaves dtype's range.
    """
    offset = 1.0 if unit_offset else 0.0
    factor = norm_weight.float() + offset
    stored = (factor / scale - offset).to(dtype).float() + offset
    realised = factor / stored
    sound = (factor != 0) & (stored != 0) & realised.isfinite()
    return torch.where(sound, realised, torch.ones_like(realised))


def fold(
    block: Mapping[str, Tensor], site: Site, config: DecoderConfig, scale: Tensor
) -> dict[str, Tensor]:
    """A block in which the site's linears take inputs divided by scale [in]; tensors of any dtype.

    The weights of the linears, and of those that it compensates, are multiplied by scale; the
    feeder's outputs are divided by it.
    What changes is float32: what will be stored is decided by the caller.
    """
    folded = dict(block)
    for linear in (*site.linears, *site.compensated):
        folded[f"{linear}.weight"] = folded[f"{linear}.weight"] * scale
    divisor = feeder_scale(site, config, scale)
    weight = folded[f"{site.feeder}.weight"].float()
    if site.feeder_is_norm:
        offset = 1.0 if config.norm_unit_offset else 0.0
        folded[f"{site.feeder}.weight"] = (weight + offset) / divisor - offset
    else:
        folded[f"{site.feeder}.weight"] = weight / divisor.unsqueeze(-1)
        if f"{site.feeder}.bias" in folded:
            folded[f"{site.feeder}.bias"] = folded[f"{site.feeder}.bias"] / divisor
    return folded
