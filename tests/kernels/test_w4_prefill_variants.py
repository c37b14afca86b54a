"""Which build of the large-M kernel runs: within what the kernel and the chip allow."""

from __future__ import annotations

import pytest

from awqkit_runtime.kernels.launch_plan import GpuModel
from awqkit_runtime.kernels.w4_prefill_choice import choose_variant, clusters_that_fit
from awqkit_runtime.kernels.w4_prefill_variants import VARIANTS, Variant

H200 = GpuModel(arch="sm_90a", multiprocessors=132)
TOKENS = (1, 8, 65, 96, 128, 129, 200, 256, 300, 512, 777, 1000, 1024, 4096, 8192, 100_000)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: "-".join(variant.defines))
def test_a_variant_fits_its_multiprocessor(variant: Variant) -> None:
    launched = 65536 // (variant.blocks * variant.threads) // 8 * 8
    registers = min(232, (launched * (variant.consumers + 1) - 40) // variant.consumers)
    accumulators = variant.tokens // 2 * variant.row_blocks * (2 if variant.scale_sums else 1)
    assert variant.shared_bytes <= H200.shared_bytes_a_block(variant.blocks)
    assert accumulators + 40 <= registers
    assert 3 <= variant.stages <= 16
    assert variant.cluster == 1 or variant.split == 1
    assert variant.row_blocks == 1 or variant.by_warps
    assert (variant.blocks > 1) == (variant.paired_cycles > 0)


def test_shared_memory_is_what_the_kernel_lays_out() -> None:
    """By hand: 7 stages of 16 tokens and 128 rows, 4 parts of 16 tokens, the sums of one each."""
    variant = next(v for v in VARIANTS if (v.tokens, v.split) == (16, 4))
    stage = 2 * (16 * 128 + 8 * 512) + 8 * 64 + 16
    assert variant.stages == 7
    assert variant.shared_bytes == 7 * stage + 2 * 2 * 2048 + 4 * 4096 + 2 * 8 + 1024


def test_shared_memory_of_a_tile_for_eight_tokens() -> None:
    """By hand: 5 stages of 8 tokens and 128 rows, one warpgroup's stores, 8 parts' sums."""
    variant = next(v for v in VARIANTS if (v.tokens, v.split) == (8, 8))
    stage = 2 * (8 * 128 + 8 * 512) + 8 * 64 + 16
    assert (variant.rows, variant.stages, variant.threads) == (128, 5, 256)
    assert variant.shared_bytes == 5 * stage + 2 * 1024 + 8 * 2048 + 8 + 1024


@pytest.mark.parametrize("multiprocessors", [114, 132])
@pytest.mark.parametrize(
    ("n", "k"), [(8, 128), (72, 256), (1024, 1024), (6144, 4096), (4096, 14336), (57344, 8192)]
)
def test_tiles_are_shared_along_k_only_where_every_worker_gets_some(
    n: int, k: int, multiprocessors: int
) -> None:
    gpu = GpuModel(arch="sm_90a", multiprocessors=multiprocessors)
    for m in TOKENS:
        choice = choose_variant(m, n, k, gpu)
        variant, stream_tiles = choice.variant, choice.stream_tiles
        assert 0 <= stream_tiles <= variant.tiles(m, n)
        assert k // 128 >= variant.split
        if stream_tiles:
            assert variant.split == 1
            assert stream_tiles * (k // 128) >= choice.workers
            assert choice.workers <= multiprocessors


def test_numbers_of_tokens_that_fill_the_same_tiles_run_alike() -> None:
    """Then one of eight numbers is looked at, and none of the tiles may tell them apart."""
    for variant in VARIANTS:
        assert variant.tiles(1, 4096) == variant.tiles(8, 4096)
        assert variant.tokens % 8 == 0
    assert choose_variant(121, 4096, 4096, H200) is choose_variant(128, 4096, 4096, H200)


def test_a_lone_row_of_tiles_is_shared_along_k() -> None:
    choice = choose_variant(96, 4096, 14336, H200)
    assert choice.variant.split > 1 or choice.stream_tiles == choice.variant.tiles(96, 4096)


def test_long_launches_share_tokens() -> None:
    variant = choose_variant(8192, 28672, 4096, H200).variant
    assert (variant.tokens, variant.cluster) == (256, 2)


#: (tokens, rows, split) of the fastest of those measured, in the order of a block of a 7B model.
MEASURED = {
    8: ((8, 128, 4), (8, 128, 8), (8, 128, 1), (8, 128, 8)),
    16: ((16, 128, 4), (16, 128, 5), (16, 128, 1), (16, 128, 5)),
    32: ((32, 128, 4), (32, 128, 4), (32, 256, 1), (32, 192, 5)),
    48: ((48, 128, 4), (48, 128, 4), (48, 256, 1), (48, 192, 1)),
    64: ((64, 192, 3), (64, 192, 5), (64, 256, 1), (64, 192, 5)),
}


@pytest.mark.parametrize("m", MEASURED)
def test_a_7b_block_gets_what_was_measured_as_fastest(m: int) -> None:
    shapes = ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336))
    variants = [choose_variant(m, n, k, H200).variant for n, k in shapes]
    assert tuple((v.tokens, v.rows, v.split) for v in variants) == MEASURED[m]


def test_clusters_lie_within_a_gpc() -> None:
    """As many as an H200 was seen to run at once, and never more than there are multiprocessors."""
    assert [clusters_that_fit(size, 132) for size in (1, 2, 4)] == [132, 66, 30]
    for multiprocessors in (78, 114, 132, 144):
        for size in range(1, 9):
            assert clusters_that_fit(size, multiprocessors) * size <= multiprocessors
