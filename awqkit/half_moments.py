"""What the linears of half a block read, by moments, and beside it the unquantized model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from awqkit.block_job import Block, BlockJob
from awqkit.calibration.capture import Reference, capture_moments
from awqkit.half_task import HalfTask
from awqkit.search.moments import Moments
from awqkit.search.site import Rows
from awqkit.search.sites import Input, Site

#: Inputs wider than this have moments of gigabytes; those that judge, and drift, wait on the host.
WIDEST_ON_DEVICE = 20000
#: Kinds of sites whose outputs are added to the residual stream, unless a norm stands between.
ADDED = ("o", "down")


def half_moments(
    job: BlockJob,
    task: HalfTask,
    hidden: Tensor,
    inputs: Sequence[Input],
    *,
    block: Block,
    unrounded: Block,
    drifting: Sequence[Site],
) -> dict[str, Rows]:
    """Of each input by its name; those that no token reached are absent.

    hidden: this process's rows that enter the half.  block, unrounded: the half as far as it has
    come, and before it was rounded.  drifting: the sites where the unquantized model is looked at.
    """
    half = task.run(job, task.layer, block)
    names = {reader.name for reader in inputs}
    with job.timed("moments"):
        capture = partial(
            capture_moments,
            half,
            batch_size=job.batch_size,
            device=job.device,
            ranks=job.ranks,
        )
        rows, references = job.share.split(hidden), _references(job, task, unrounded, drifting)
        # Those that judge first, so that wide ones are out of the way of the others.
        judged = {
            name: moments.on_host() if _is_wide(moments) else moments
            for name, moments in capture(rows[1], names, reference=references[1]).items()
        }
        searched = {
            name: moments.with_drift_on_host() if _is_wide(moments) else moments
            for name, moments in capture(rows[0], names, reference=references[0]).items()
        }
    return {name: Rows(searched[name], judged[name]) for name in searched.keys() & judged.keys()}


def _is_wide(moments: Moments) -> bool:
    return len(moments.gram) > WIDEST_ON_DEVICE


def _references(
    job: BlockJob, task: HalfTask, unrounded: Block, sites: Sequence[Site]
) -> tuple[Reference | None, Reference | None]:
    """Beside the rows that are searched and those that judge.

    Experts have none: other tokens may be routed to them than in the unquantized model.
    """
    is_added = not job.config.post_norms
    dense = {
        reader.name: unrounded[f"{reader.linears[0]}.weight"].to(job.compute_dtype)
        if site.kind in ADDED and is_added
        else None
        for site in sites
        for reader in site.inputs
        if reader.name == site.kind
    }
    if task.original is None or not dense:
        return None, None
    half = task.run(job, task.layer, unrounded)
    searched, judged = (
        Reference(half=half, hidden=part, sites=dense) for part in job.share.split(task.original)
    )
    return searched, judged
