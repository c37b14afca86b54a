"""Which variant of w4_prefill.cu is the fastest for a shape.

A launch takes its longest worker's groups of 128 inputs times the cycles that one takes a block,
or as long as memory needs, and what it costs to begin, to end and to add up the parts of tiles
that are shared along K. The cycles were measured on an H200; docs/kernel_log.md has the
measurements that the rule reproduces.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from awqkit.checkpoint.layout import GROUP_SIZE
from awqkit_runtime.kernels.launch_plan import GpuModel, ceil_div
from awqkit_runtime.kernels.w4_prefill_variants import VARIANTS, Variant

#: Multiprocessors of each GPC, within which a cluster lies: as many clusters as were seen to run
#: at once fit into these.
_CLUSTER_ROOM = (18, 18, 18, 18, 16, 16, 14, 14)
#: Bytes a cycle: what one multiprocessor can fetch, and its part of what memory gives all of them.
_FETCHED, _MEMORY_SHARE = 22.0, 17.4
_TILE_ROW_BYTES = 68
#: From so many rounds on the chip is limited by power, which sharing tokens saves.
_SUSTAINED_ROUNDS = 2
#: All tiles hold a multiple of so many tokens, so that numbers between two of these run alike.
_TOKEN_STEP = 8


@dataclass(frozen=True, kw_only=True)
class Edge:
    """Cycles of a launch besides its groups: in any case, and for every 2^14 sums of a tile."""

    launch: int
    sums: int = 0


@dataclass(frozen=True, kw_only=True)
class Edges:
    """By how tiles go to blocks: whole, shared along K through memory, or within a cluster."""

    whole: Edge
    shared: Edge
    split: Edge


_MANY = Edges(
    whole=Edge(launch=5500),
    shared=Edge(launch=5500, sums=9000),
    split=Edge(launch=7500),
)
_ALONE = Edges(
    whole=Edge(launch=6400),
    shared=Edge(launch=9950, sums=8600),
    split=Edge(launch=5300, sums=5500),
)
_PAIRED = Edges(
    whole=Edge(launch=6460, sums=4560),
    shared=Edge(launch=6670, sums=10000),
    split=Edge(launch=4020, sums=4700),
)
_BY_WARPS = Edges(
    whole=Edge(launch=5550),
    shared=Edge(launch=9200),
    split=Edge(launch=5100),
)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A way to run a shape. workers: blocks or clusters; stream_tiles: tiles cut along K."""

    variant: Variant
    workers: int
    stream_tiles: int
    cycles: float


def choose_variant(m: int, n: int, k: int, gpu: GpuModel) -> Choice:
    """The one with the least estimated time."""
    return _choose(tuple(VARIANTS), ceil_div(m, _TOKEN_STEP) * _TOKEN_STEP, n, k, gpu)


@cache
def _choose(variants: tuple[Variant, ...], m: int, n: int, k: int, gpu: GpuModel) -> Choice:
    return min(
        (choice for variant in variants for choice in _choices(variant, m, n, k, gpu)),
        key=lambda choice: choice.cycles,
    )


def _workers(variant: Variant, gpu: GpuModel, blocks: int) -> int:
    """Blocks, or clusters of them, that are resident at once, `blocks` a multiprocessor."""
    size = variant.cluster * variant.split
    alone = gpu.multiprocessors if size == 1 else clusters_that_fit(size, gpu.multiprocessors)
    return blocks * alone


def clusters_that_fit(size: int, multiprocessors: int) -> int:
    """Clusters of so many blocks that run at once, with one block a multiprocessor."""
    count = 0
    for room in _CLUSTER_ROOM:
        count += min(room, multiprocessors) // size
        multiprocessors -= min(room, multiprocessors)
    return count


def _choices(variant: Variant, m: int, n: int, k: int, gpu: GpuModel) -> Iterator[Choice]:
    groups = k // GROUP_SIZE
    if groups < variant.split or (variant.scale_sums and m > variant.tokens):
        return
    tiles = variant.tiles(m, n)
    workers = _workers(variant, gpu, variant.blocks)
    share = ceil_div(tiles, workers) * ceil_div(groups, variant.split)
    yield _choice(variant, m, n, gpu, workers, 0, share)
    workers = _workers(variant, gpu, 1)
    left = tiles % workers
    shared = left + (workers if tiles > workers else 0)
    if variant.split == 1 and left and shared * groups >= workers:
        yield _choice(variant, m, n, gpu, workers, shared, tiles * groups / workers)


def _choice(
    variant: Variant, m: int, n: int, gpu: GpuModel, workers: int, stream_tiles: int, groups: float
) -> Choice:
    """groups: of the longest worker."""
    tiles = variant.tiles(m, n)
    busy = workers if stream_tiles else min(tiles, workers)
    blocks = busy * variant.cluster * variant.split
    paired = variant.blocks > 1 and blocks > gpu.multiprocessors
    group_cycles = float(variant.paired_cycles if paired else variant.cycles)
    if variant.cluster > 1 and tiles < _SUSTAINED_ROUNDS * workers:
        group_cycles *= 1.05
    rate = min(_FETCHED * min(blocks, gpu.multiprocessors), _MEMORY_SHARE * gpu.multiprocessors)
    fetch = variant.rows * _TILE_ROW_BYTES * blocks / rate
    edges = _edges(variant)
    edge = edges.shared if stream_tiles else edges.split if variant.split > 1 else edges.whole
    launches = ceil_div(tiles, workers) if variant.split > 1 else 1
    cycles = launches * edge.launch + edge.sums * variant.rows * variant.tokens / 2**14
    return Choice(
        variant=variant,
        workers=workers,
        stream_tiles=stream_tiles,
        cycles=cycles + groups * max(group_cycles, fetch),
    )


def _edges(variant: Variant) -> Edges:
    if not variant.scale_sums:
        return _MANY
    if variant.by_warps:
        return _BY_WARPS
    return _PAIRED if variant.blocks > 1 else _ALONE
