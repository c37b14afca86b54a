"""The scale of one site, given what is before it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial

import torch
from torch import Tensor

from awqkit.block_job import Block, BlockJob
from awqkit.search.fold import realised_norm_scale
from awqkit.search.site import Rows, choose_scale
from awqkit.search.sites import Site, tie_channels

#: Output rows by which a scale is chosen: more tell nothing new of it, and need the memory.
MAX_SCALE_ROWS = 65536


def site_scale(
    job: BlockJob, site: Site, block: Block, rows: Rows, takers: Collection[str]
) -> tuple[Tensor, str]:
    """The site's scale [in], and in words. takers: linears that can take one into their outputs."""
    realise = partial(_realised, job, site, block[f"{site.feeder}.weight"])
    can_fold = site.feeder_is_norm or site.feeder in takers
    if not (job.search_scale and can_fold):
        return realise(torch.ones_like(rows.search.magnitude)), "identity"
    choice = choose_scale(
        _sampled_rows([block[f"{linear}.weight"] for linear in site.linears]),
        rows,
        tie=partial(tie_channels, site, job.config),
        realise=realise,
    )
    return choice.scale, choice.description


def _sampled_rows(weights: Sequence[Tensor]) -> list[Tensor]:
    """The weights [out, in] in float32; of those of many experts, evenly spaced rows of each."""
    step = -(-sum(map(len, weights)) // MAX_SCALE_ROWS)
    return [weight[::step].float() for weight in weights]


def _realised(job: BlockJob, site: Site, feeder: Tensor, scale: Tensor) -> Tensor:
    """The scale [in] that counts once the feeder is stored; a linear is stored by its integers."""
    if not site.feeder_is_norm:
        return scale
    offset = job.config.norm_unit_offset
    return realised_norm_scale(feeder, scale, job.stored_dtype, unit_offset=offset)
