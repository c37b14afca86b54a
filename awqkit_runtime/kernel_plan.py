"""Which kernels a model's 4-bit linears run on, over the number of tokens: pure arithmetic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from awqkit.checkpoint import DecoderConfig
from awqkit.checkpoint.canonical import canonical_shapes, layer_prefix
from awqkit_runtime.kernels.w4_plan import GpuModel, LaunchPlan, plan_w4_linear
from awqkit_runtime.models.footprint import BitsOf, joint_linears

#: Tokens up to which plans are listed; a step's largest default is 2048.
MOST_TOKENS = 8192


@dataclass(frozen=True, kw_only=True)
class LinearShape:
    """Equal matrices as they are loaded: names of the linears in one, and how many there are."""

    name: str
    out_features: int
    in_features: int
    count: int


@dataclass(frozen=True, kw_only=True)
class PlannedRange:
    """Numbers of tokens, both ends included, that run by the same program on the same grid.

    plan: that of the last one.
    """

    first: int
    last: int
    plan: LaunchPlan


#: A 7B model's four linears, for who names no model.
EXAMPLE = tuple(
    LinearShape(name=name, out_features=n, in_features=k, count=1)
    for name, n, k in (
        ("q, k, v", 6144, 4096),
        ("o", 4096, 4096),
        ("gate, up", 28672, 4096),
        ("down", 4096, 14336),
    )
)


def linear_shapes(config: DecoderConfig, bits_of: BitsOf) -> list[LinearShape]:
    """The 4-bit matrices of a model, equal ones once, in the order of execution."""
    counts = Counter(_matrices(config, bits_of))
    return [
        LinearShape(name=name, out_features=rows, in_features=columns, count=count)
        for (name, rows, columns), count in counts.items()
    ]


def planned_ranges(n: int, k: int, gpu: GpuModel) -> list[PlannedRange]:
    """What runs for 1 … MOST_TOKENS tokens."""
    ranges: list[PlannedRange] = []
    for m in range(1, MOST_TOKENS + 1):
        plan = plan_w4_linear(m, n, k, gpu)
        if ranges and _alike(ranges[-1].plan, plan):
            ranges[-1] = PlannedRange(first=ranges[-1].first, last=m, plan=plan)
        else:
            ranges.append(PlannedRange(first=m, last=m, plan=plan))
    return ranges


def _alike(one: LaunchPlan, other: LaunchPlan) -> bool:
    """Shared memory may grow with the tokens."""
    return (one.program, one.shape.grid) == (other.program, other.shape.grid)


def _matrices(config: DecoderConfig, bits_of: BitsOf) -> Iterator[tuple[str, int, int]]:
    """Name, rows and columns of every matrix, linears that read the same input as one."""
    shapes = canonical_shapes(config)
    for layer in range(config.num_layers):
        for site in joint_linears(config, layer):
            names = [f"{layer_prefix(layer)}{name}.weight" for name in site]
            for bits, run in groupby(names, bits_of):
                if bits is not None:
                    yield _joint([(name, shapes[name][0], shapes[name][1]) for name in run])


def _joint(linears: Sequence[tuple[str, int, int]]) -> tuple[str, int, int]:
    names = [name.split(".")[-2].removesuffix("_proj") for name, _, _ in linears]
    return ", ".join(names), sum(rows for _, rows, _ in linears), linears[0][2]
