"""One block from float weights to integers: its two halves, and the rows that pass through them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from awqkit.block_job import Block, BlockJob, SiteResult
from awqkit.calibration.capture import advance
from awqkit.calibration.output_moments import OutputMoments, added, output_moments
from awqkit.checkpoint import QuantizedWeight
from awqkit.checkpoint.canonical import layer_prefix
from awqkit.checkpoint.layout import is_quantizable
from awqkit.decoder import block_forward
from awqkit.errors import QuantizationError
from awqkit.expert_tokens import starved_experts
from awqkit.half_quantizer import quantize_half
from awqkit.half_runners import run_attention, run_mlp
from awqkit.half_task import HalfTask
from awqkit.ranks.ranks import in_turns, shared_out
from awqkit.repeatable import repeatable
from awqkit.search.affine import min_max_grid, round_to_nearest
from awqkit.search.sites import Site, attention_sites, mlp_sites

__all__ = [
    "BlockJob",
    "QuantizedBlock",
    "SiteResult",
    "nearest_block",
    "quantizable_sites",
    "quantize_block",
    "require_searched",
]

#: Of the calibration tokens, those whose gradients are gathered, and at least a batch.
GRADIENT_TOKENS = 65536


@dataclass(frozen=True, kw_only=True)
class QuantizedBlock:
    """stored: what the checkpoint gets; running: the same function as dense float tensors.

    offsets: by weight, as rounding_offsets has them, where codes are to be tuned.
    """

    stored: dict[str, Tensor | QuantizedWeight]
    running: dict[str, Tensor]
    offsets: dict[str, Tensor]


def quantizable_sites(shapes: Mapping[str, tuple[int, ...]]) -> tuple[Site, ...]:
    """Sites whose linears all divide into groups; engines fuse them, so it is all or none.

    shapes: of a block's tensors, (out, in) of linears, by their names relative to the layer.
    """
    return tuple(
        site
        for site in (*attention_sites(), *mlp_sites(shapes))
        if all(is_quantizable(*shapes[f"{linear}.weight"]) for linear in site.linears)
    )


def quantize_block(
    job: BlockJob,
    layer: int,
    weights: Mapping[str, Tensor],
    hidden: Tensor,
    original: Tensor | None = None,
) -> QuantizedBlock:
    """Quantize one block and advance hidden [rows, T, hidden] through the result, in place.

    weights: on the job's device.  hidden: the rows of this process's share, there or, where it
    would take too much of it, on the host; a batch at a time goes to the device.  original: the
    same rows in the unquantized model, which advance as well, where rounding is to aim at what they
    become.
    """
    weights = dict(weights)
    block = weights
    sites = quantizable_sites(_shapes(block))
    attention = {site.name for site in attention_sites()}
    outputs = {} if original is None else _output_moments(job, layer, weights, sites, original)
    stored: dict[str, Tensor | QuantizedWeight] = {}
    offsets: dict[str, Tensor] = {}

    def quantize(task: HalfTask) -> Block:
        after, integers = quantize_half(job, task, block, hidden)
        stored.update(integers)
        with job.timed("passing rows on"):
            pass_on = partial(advance, batch_size=job.batch_size, device=job.device)
            for rows in job.share.parts(hidden):
                pass_on(task.run(job, layer, after), rows)
            for rows in () if original is None else job.share.parts(original):
                pass_on(task.run(job, layer, weights), rows)
        return after

    of_attention = tuple(site for site in sites if site.name in attention)
    block = quantize(
        HalfTask(
            layer=layer,
            run=run_attention,
            sites=of_attention,
            original=original,
            outputs=outputs,
            offsets=offsets,
        )
    )
    starved = starved_experts(
        block,
        job.config,
        layer,
        job.share.split(hidden),
        batch_size=job.batch_size,
        ranks=job.ranks,
    )
    block = quantize(
        HalfTask(
            layer=layer,
            run=partial(run_mlp, show_all=tuple(each.expert for each in starved)),
            sites=sites[len(of_attention) :],
            original=original,
            outputs=outputs,
            offsets=offsets,
            starved=starved,
        )
    )
    stored |= {
        name: tensor.to(job.stored_dtype) for name, tensor in block.items() if name not in stored
    }
    return QuantizedBlock(stored=stored, running=block, offsets=offsets)


def _output_moments(
    job: BlockJob, layer: int, weights: Block, sites: Sequence[Site], original: Tensor
) -> OutputMoments:
    """What the unquantized block's output minds, on the first of the rows that are searched.

    original: this process's rows. Batches come one by one from the processes that hold them, so
    that the sums are those of one process.
    """
    ranks, rows = job.ranks, job.share.split(original)[0]
    computing = {name: tensor.to(job.compute_dtype) for name, tensor in weights.items()}
    linears = [linear for site in sites for linear in site.linears]

    def run(block: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return block_forward(block, job.config, layer, x, job.rotary.of(layer))

    def of_batch(number: int) -> OutputMoments:
        start = number // ranks.count * job.batch_size
        batch, seed = rows[start : start + job.batch_size], layer << 16 | number
        return output_moments(run, computing, batch, linears=linears, seed=seed)

    batches = int(ranks.total(torch.tensor(-(-len(rows) // job.batch_size))))
    wanted = max(1, GRADIENT_TOKENS // (job.batch_size * original.shape[1]))
    works = [partial(of_batch, number) for number in range(min(batches, wanted))]
    sums: OutputMoments = {}
    with job.timed("gradients"), repeatable():
        for turn in in_turns(ranks, works):
            for moments in shared_out(ranks, turn):
                sums = added(sums, moments)
    return {name: tuple(part.cpu() for part in parts) for name, parts in sums.items()}


def nearest_block(weights: Mapping[str, Tensor]) -> Block:
    """The block after plain round-to-nearest: the baseline that everything is measured by."""
    block = {name: tensor.float() for name, tensor in weights.items()}
    for site in quantizable_sites(_shapes(block)):
        for linear in site.linears:
            weight = block[f"{linear}.weight"]
            block[f"{linear}.weight"] = round_to_nearest(weight, min_max_grid(weight))
    return block


def require_searched(block: QuantizedBlock, layer: int) -> None:
    """Refuse integers that mean other weights than those that were searched and passed through."""
    for name, weight in block.stored.items():
        if isinstance(weight, QuantizedWeight):
            searched = block.running[name]
            if not torch.equal(weight.dequantize(searched.dtype), searched):
                raise QuantizationError(
                    f"{layer_prefix(layer)}{name}: the integers to be stored stand for other "
                    "weights than the search found. This is a fault of awqkit: please report it "
                    "with the model's name."
                )


def _shapes(block: Block) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in block.items()}
