"""The variants of w4_prefill.cu that are built, and which of them is the fastest for a shape.

A block's time is its steps of 64 inputs times the cycles that one takes, plus what it costs to
begin, to end and to add up the parts of tiles that are shared along K. The cycles were measured on
an H200; docs/kernels.md has the measurements that the rule reproduces.
"""

from __future__ import annotations

from dataclasses import dataclass

from awqkit.checkpoint.layout import GROUP_SIZE
from awqkit_runtime.kernels.launch_plan import ceil_div

#: Cycles of an H200: launching and storing, adding up parts through global memory, in a cluster.
_LAUNCH, _EXCHANGE, _CLUSTER_SUM = 5500, 9000, 2000
_STEPS_A_GROUP = 2
#: From so many rounds on the chip is limited by power, which sharing tokens saves.
_SUSTAINED_ROUNDS = 2


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One set of compile-time numbers. step_cycles: one block, 64 inputs."""

    tokens: int
    consumers: int
    stages: int
    step_cycles: int
    cluster: int = 1
    split: int = 1

    @property
    def defines(self) -> tuple[str, ...]:
        return (
            f"W4_TOKENS={self.tokens}",
            f"W4_CONSUMERS={self.consumers}",
            f"W4_CLUSTER={self.cluster}",
            f"W4_SPLIT={self.split}",
            f"W4_STAGES={self.stages}",
        )

    @property
    def rows(self) -> int:
        """Output rows of a block's tile."""
        return 64 * self.consumers

    @property
    def threads(self) -> int:
        return 128 * (self.consumers + 1)

    @property
    def shared_bytes(self) -> int:
        """Stages, store buffers, barriers and alignment, and the sums of a split tile."""
        ring = self.stages * (128 * self.tokens + 2304 * self.consumers)
        sums = 256 * self.tokens * self.consumers if self.split > 1 else 0
        return ring + 8192 * self.consumers + 1280 + sums

    def tiles(self, m: int, n: int) -> int:
        """Tiles of the output; those of a cluster that shares tokens count as one."""
        return ceil_div(n, self.rows * self.cluster) * ceil_div(m, self.tokens)

    def workers(self, multiprocessors: int) -> int:
        """Blocks, or clusters of them, that are resident at once."""
        return multiprocessors // (self.cluster * self.split)


VARIANTS = (
    Variant(tokens=256, consumers=2, stages=5, step_cycles=1190),
    Variant(tokens=256, consumers=2, stages=5, step_cycles=1150, cluster=2),
    Variant(tokens=128, consumers=4, stages=7, step_cycles=1220),
    Variant(tokens=128, consumers=3, stages=8, step_cycles=960),
    Variant(tokens=128, consumers=3, stages=4, step_cycles=960, split=2),
    Variant(tokens=128, consumers=2, stages=10, step_cycles=700),
    Variant(tokens=128, consumers=2, stages=6, step_cycles=700, split=2),
    Variant(tokens=96, consumers=3, stages=9, step_cycles=800),
    Variant(tokens=64, consumers=3, stages=10, step_cycles=730, split=2),
    Variant(tokens=64, consumers=2, stages=8, step_cycles=550, split=2),
)


def choose_variant(m: int, n: int, k: int, multiprocessors: int) -> tuple[Variant, int]:
    """The variant with the least estimated time, and how many of its tiles are shared along K."""
    return min(
        ((variant, _stream_tiles(variant, m, n, k, multiprocessors)) for variant in VARIANTS),
        key=lambda choice: _cycles(choice[0], choice[1], m, n, k, multiprocessors),
    )


def _stream_tiles(variant: Variant, m: int, n: int, k: int, multiprocessors: int) -> int:
    """All tiles of a last round that is not full, and those of the round before, if that pays."""
    tiles, workers = variant.tiles(m, n), variant.workers(multiprocessors)
    left = tiles % workers
    shared = left + (workers if tiles > workers else 0)
    if variant.split > 1 or left == 0 or shared * (k // GROUP_SIZE) < workers:
        return 0
    steps = _STEPS_A_GROUP * (k // GROUP_SIZE)
    gain = (ceil_div(tiles, workers) - tiles / workers) * steps * variant.step_cycles
    return shared if gain > _exchange(variant) else 0


def _exchange(variant: Variant) -> float:
    """Cycles to hand over and add up one tile, which grow with its size."""
    return _EXCHANGE * variant.rows * variant.tokens / 2**14


def _cycles(
    variant: Variant, stream_tiles: int, m: int, n: int, k: int, multiprocessors: int
) -> float:
    tiles, workers = variant.tiles(m, n), variant.workers(multiprocessors)
    groups = k // GROUP_SIZE
    if groups < variant.split:
        return float("inf")
    rounds = tiles / workers if stream_tiles else float(ceil_div(tiles, workers))
    steps = _STEPS_A_GROUP * ceil_div(groups, variant.split)
    extra = _exchange(variant) if stream_tiles else _CLUSTER_SUM if variant.split > 1 else 0
    penalty = 1.05 if variant.cluster > 1 and tiles < _SUSTAINED_ROUNDS * workers else 1.0
    return _LAUNCH + rounds * steps * variant.step_cycles * penalty + extra
