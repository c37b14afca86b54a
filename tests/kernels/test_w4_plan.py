"""The rule that says which kernel runs: total, pure, and within what a card has."""

from __future__ import annotations

import pytest

from awqkit_runtime.kernels.cuda.sources import read_sources
from awqkit_runtime.kernels.w4_plan import (
    MULTIPROCESSORS,
    GpuModel,
    LaunchPlan,
    all_plans,
    plan_w4_linear,
)
from awqkit_runtime.kernels.w4_stationary_plan import plan_stationary

GPUS = [GpuModel(arch=arch, multiprocessors=count) for arch, count in MULTIPROCESSORS.items()]
SHAPES = [(8, 128), (6144, 4096), (4096, 14336), (28672, 4096), (8192, 28672), (72, 25600)]


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.arch)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_every_number_of_tokens_has_a_launch_that_fits(gpu: GpuModel, n: int, k: int) -> None:
    for m in (*range(1, 301), 512, 1000, 1024, 4096, 8192, 100_000):
        plan = plan_w4_linear(m, n, k, gpu)
        assert plan == plan_w4_linear.__wrapped__(m, n, k, gpu)
        assert plan.shape.shared_bytes <= gpu.shared_bytes_a_block(1)
        assert plan.shape.grid[0] > 0 and plan.shape.block[0] % 32 == 0
        assert plan.shape.block[0] <= 1024
        assert f"cuda/{plan.program.stem}.cu" in read_sources()


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.arch)
def test_all_plans_cover_every_program_and_all_memory(gpu: GpuModel) -> None:
    plans = all_plans(6144, 4096, gpu)
    programs = {plan.program for plan in plans}
    for m in (*range(1, 2000, 7), 5000, 50_000):
        plan = plan_w4_linear(m, 6144, 4096, gpu)
        assert plan.program in programs
        assert plan.workspace_bytes <= largest(plans, "workspace_bytes")
        assert plan.flags <= largest(plans, "flags")


def largest(plans: list[LaunchPlan], name: str) -> int:
    return max(getattr(plan, name) for plan in plans)


def test_only_the_chip_that_has_them_gets_its_own_instructions() -> None:
    for gpu in GPUS:
        kernels = {plan.kernel for plan in all_plans(4096, 4096, gpu)}
        assert ("prefill" in kernels) == (gpu.arch == "sm_90a")


@pytest.mark.parametrize(
    ("tokens", "attention_and_gate", "down"),
    [
        (1, "decode", "decode"),
        (2, "stationary", "stationary"),
        (3, "stationary", "stationary"),
        (4, "stationary", "stationary"),
        (6, "stationary", "stationary"),
        (8, "stationary", "stationary"),
        (12, "batch", "batch"),
        (16, "batch", "batch"),
    ],
)
def test_few_tokens_get_what_was_fastest_in_order(
    tokens: int, attention_and_gate: str, down: str
) -> None:
    """Of all mixtures, measured in the order of a block of a 7B model: docs/kernel_log.md."""
    gpu = GPUS[2]
    shapes = ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336))
    kernels = [plan_w4_linear(tokens, n, k, gpu).kernel for n, k in shapes]
    assert kernels == [attention_and_gate] * 3 + [down]


def test_few_stages_stand_before_the_inputs() -> None:
    shapes = {
        (6144, 4096): (2, 1),
        (4096, 4096): (2, 1),
        (28672, 4096): (3, 0),
        (4096, 14336): (2, 0),
    }
    for (n, k), (early, first) in shapes.items():
        defines = plan_w4_linear(8, n, k, GPUS[2]).program.defines
        assert {f"W4_EARLY={early}", f"W4_INPUTS_FIRST={first}"} <= {*defines}


def test_the_stationary_ring_fills_shared_memory() -> None:
    gpu = GPUS[2]
    whole, slices = plan_w4_linear(8, 28672, 4096, gpu), plan_w4_linear(4, 4096, 14336, gpu)
    for plan in (whole, slices):
        assert plan.kernel == "stationary"
        assert gpu.blocks_that_fit(plan.shape.shared_bytes) == 1
        assert plan.flags == 1
    assert whole.shape.grid[0] == 132
    assert slices.shape.grid[0] == 120, "30 clusters of four run at once"


@pytest.mark.parametrize(
    ("n", "k", "slices"),
    [
        (8, 2048, None),
        (8, 2176, 1),
        (8, 4096, 1),
        (8, 4224, None),
        (8, 8192, None),
        (8, 8320, 4),
        (5760, 16384, 4),
        (5776, 16384, None),
        (8, 16512, None),
    ],
)
def test_stationary_slices_are_of_17_to_32_groups(n: int, k: int, slices: int | None) -> None:
    timed = plan_stationary(4, n, k, GPUS[2])
    if slices is None:
        assert timed is None
    else:
        assert timed is not None and f"W4_SLICES={slices}" in timed.plan.program.defines
        assert timed.plan.shape.grid[0] % slices == 0
