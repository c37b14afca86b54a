"""Times of the kernels between the linears against the torch operations that they stand for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from gpu_timing import Ceilings, microseconds
from torch import Tensor

from awqkit.decoder import apply_rotary, rms_norm
from awqkit_runtime.kernels.rms_norm import add_rms_norm
from awqkit_runtime.kernels.rotary import rotary_
from awqkit_runtime.kernels.silu_mul import silu_mul

TOKENS = (1, 16, 256, 4096)
HIDDEN, INTERMEDIATE, HEADS, KEY_HEADS, HEAD_DIM = 4096, 14336, 32, 8, 128
#: Launches of one graph, so that a graph's own start does not count.
CALLS = 50


@dataclass(frozen=True, kw_only=True)
class Fusion:
    """moved: bytes that must be read and written for a token."""

    name: str
    moved: int
    kernel: Callable[[], object]
    torch: Callable[[], object]


def measure_fusions(ceilings: Ceilings) -> list[dict[str, object]]:
    """Print and return a row for each kernel and number of tokens."""
    print(f"{'op':13} tokens       µs     GB/s  of copy     torch")
    rows: list[dict[str, object]] = []
    for m in TOKENS:
        for fusion in fusions(m):
            us, torch_us = (_once(work) for work in (fusion.kernel, fusion.torch))
            rate = fusion.moved * m / us / 1e3
            share = rate * 1e9 / ceilings.bandwidth
            print(f"{fusion.name:13} {m:6} {us:8.2f} {rate:8.0f} {share:8.2f} {torch_us:9.2f}")
            row = {"op": fusion.name, "tokens": m, "us": us, "gb_s": rate, "torch_us": torch_us}
            rows.append(row)
    return rows


def fusions(m: int) -> list[Fusion]:
    x, delta, weight = _random(m, HIDDEN), _random(m, HIDDEN), _random(HIDDEN)
    gate_up = _random(m, 2 * INTERMEDIATE)
    qkv = _random(m, (HEADS + 2 * KEY_HEADS) * HEAD_DIM)
    angles = torch.rand(m, HEAD_DIM // 2, device="cuda").repeat(1, 2)
    cos, sin = angles.cos(), angles.sin()

    def rotary_kernel() -> None:
        rotary_(qkv, cos, sin, query_heads=HEADS, key_heads=KEY_HEADS, head_dim=HEAD_DIM)

    def rotary_torch() -> Tensor:
        heads = qkv[:, : (HEADS + KEY_HEADS) * HEAD_DIM].unflatten(1, (-1, HEAD_DIM))
        return apply_rotary(heads, cos, sin)

    def silu_torch() -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    return [
        Fusion(
            name="add_rms_norm",
            moved=4 * 2 * HIDDEN,
            kernel=lambda: add_rms_norm(x, delta, weight, 1e-5),
            torch=lambda: rms_norm(x + delta, weight, 1e-5),
        ),
        Fusion(
            name="silu_mul",
            moved=3 * 2 * INTERMEDIATE,
            kernel=lambda: silu_mul(gate_up),
            torch=silu_torch,
        ),
        Fusion(
            name="rotary",
            moved=2 * 2 * (HEADS + KEY_HEADS) * HEAD_DIM,
            kernel=rotary_kernel,
            torch=rotary_torch,
        ),
    ]


def _once(work: Callable[[], object]) -> float:
    def repeated() -> None:
        for _ in range(CALLS):
            work()

    return microseconds(repeated) / CALLS


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)
