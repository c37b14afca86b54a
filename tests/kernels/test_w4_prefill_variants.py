"""Which build of the large-M kernel runs: within what the kernel and the chip allow."""

from __future__ import annotations

import pytest

from awqkit_runtime.kernels.launch_plan import GpuModel
from awqkit_runtime.kernels.w4_prefill_variants import VARIANTS, Variant, choose_variant

H200 = GpuModel(arch="sm_90a", multiprocessors=132)
TOKENS = (1, 8, 65, 96, 128, 129, 200, 256, 300, 512, 777, 1000, 1024, 4096, 8192, 100_000)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: "-".join(variant.defines))
def test_a_variant_fits_one_multiprocessor(variant: Variant) -> None:
    registers = {2: 232, 3: 152, 4: 112}[variant.consumers]
    accumulators = variant.tokens // 2
    assert variant.shared_bytes <= H200.shared_bytes_a_block(1)
    assert accumulators + 40 <= registers
    assert variant.tokens // 32 % variant.split == 0
    assert variant.cluster == 1 or variant.split == 1


@pytest.mark.parametrize("multiprocessors", [114, 132])
@pytest.mark.parametrize(
    ("n", "k"), [(8, 128), (72, 256), (1024, 1024), (6144, 4096), (4096, 14336), (57344, 8192)]
)
def test_tiles_are_shared_along_k_only_where_every_worker_gets_some(
    n: int, k: int, multiprocessors: int
) -> None:
    for m in TOKENS:
        variant, stream_tiles = choose_variant(m, n, k, multiprocessors)
        assert 0 <= stream_tiles <= variant.tiles(m, n)
        assert k // 128 >= variant.split
        if stream_tiles:
            assert variant.split == 1
            assert stream_tiles * (k // 128) >= variant.workers(multiprocessors)


def test_a_lone_row_of_tiles_is_shared_along_k() -> None:
    variant, stream_tiles = choose_variant(96, 4096, 14336, 132)
    assert variant.split > 1 or stream_tiles == variant.tiles(96, 4096)


def test_long_launches_share_tokens() -> None:
    variant, _ = choose_variant(8192, 28672, 4096, 132)
    assert (variant.tokens, variant.cluster) == (256, 2)
