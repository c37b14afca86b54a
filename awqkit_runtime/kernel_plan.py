"""Which kernels a model's 4-bit linears run on, over the number of tokens: pure arithmetic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby

from awqkit.checkpoint import DecoderConfig
from awqkit.checkpoint.canonical import canonical_shapes, layer_prefix, mlp_modules
from awqkit_runtime.kernels.w4_plan import GpuModel, LaunchPlan, plan_w4_linear

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
    """Numbers of tokens, both ends included, that run by the same program in the same shape."""

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


def linear_shapes(config: DecoderConfig, is_packed: Callable[[str], bool]) -> list[LinearShape]:
    """The 4-bit matrices of a model, equal ones once, in the order of execution."""
    counts = Counter(_matrices(config, is_packed))
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
            ranges[-1] = PlannedRange(first=ranges[-1].first, last=m, plan=ranges[-1].plan)
        else:
            ranges.append(PlannedRange(first=m, last=m, plan=plan))
    return ranges


def _alike(one: LaunchPlan, other: LaunchPlan) -> bool:
    return (one.program, one.shape) == (other.program, other.shape)


def _matrices(
    config: DecoderConfig, is_packed: Callable[[str], bool]
) -> Iterator[tuple[str, int, int]]:
    """Name, rows and columns of every matrix, linears that read the same input as one."""
    shapes = canonical_shapes(config)
    for layer in range(config.num_layers):
        prefix = layer_prefix(layer)
        for module, parts in _sites(config, layer):
            names = {part: f"{prefix}{module}.{part}_proj.weight" for part in parts}
            packed = {part: is_packed(name) for part, name in names.items()}
            for kept, run in groupby(parts, packed.__getitem__):
                linears = [(part, *shapes[names[part]]) for part in run]
                if kept:
                    rows = sum(linear[1] for linear in linears)
                    yield ", ".join(linear[0] for linear in linears), rows, linears[0][2]


def _sites(config: DecoderConfig, layer: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    yield "self_attn", ("q", "k", "v")
    yield "self_attn", ("o",)
    for module in mlp_modules(config, layer):
        yield module, ("gate", "up")
        yield module, ("down",)
