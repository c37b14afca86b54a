"""The halves of a block as functions of the rows that enter them."""

from __future__ import annotations

from collections.abc import Callable, Collection

from torch import Tensor

from awqkit.block_job import Block, BlockJob
from awqkit.calibration.capture import Half
from awqkit.decoder import Observer, attention_half, mlp_half

HalfOfBlock = Callable[[BlockJob, int, Block], Half]


def run_attention(job: BlockJob, layer: int, block: Block) -> Half:
    """The half before the MLP, in the job's compute dtype."""
    weights = _cast(job, block, but_not="mlp.")

    def half(x: Tensor, observe: Observer) -> Tensor:
        x = x.to(job.device, non_blocking=True)
        cos, sin = (table[: x.shape[1]] for table in job.rotary.of(layer))
        return attention_half(weights, job.config, layer, x, (cos, sin), observe=observe)

    return half


def run_mlp(job: BlockJob, layer: int, block: Block, *, show_all: Collection[int] = ()) -> Half:
    """The other half; show_all as in mlp_half."""
    weights = _cast(job, block, but_not="self_attn.")

    def half(x: Tensor, observe: Observer) -> Tensor:
        x = x.to(job.device, non_blocking=True)
        return mlp_half(weights, job.config, layer, x, observe=observe, show_all=show_all)

    return half


def _cast(job: BlockJob, block: Block, *, but_not: str) -> Block:
    """Half a block in the job's compute dtype."""
    return {n: t.to(job.compute_dtype) for n, t in block.items() if not n.startswith(but_not)}
