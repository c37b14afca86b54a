"""The CUDA kernels against the machine's ceilings, cuBLAS and torch's own int4 product.

    python benchmarks/kernels.py --json benchmarks/results/kernels.json --plot docs/kernels.svg

Every time is of one CUDA graph. A linear runs over copies of its weights that together exceed the
L2 cache, one after the other, and so does a block: the four linears of a 7B model's layer in their
order, layer after layer. A kernel may start before the one ahead of it has ended, but reads its
input only afterwards. cuBLAS multiplies by BF16 weights; torch's int4 product (tinygemm) has its
own packing of 4-bit weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from gpu_timing import Ceilings, measure_ceilings, microseconds
from kernel_fusions import measure_fusions
from machine import save_results
from torch import Tensor

from awqkit_runtime.kernels.w4_plan import plan_w4_linear
from awqkit_runtime.kernels.w4_tiled_linear import gpu_model, prepare, w4_tiled_linear
from awqkit_runtime.kernels.w4_tiles import W4Tiles, empty_tiles

#: (out, in) of a 7B model's linears in their order.
LINEARS = {
    "qkv": (6144, 4096),
    "o": (4096, 4096),
    "gate_up": (28672, 4096),
    "down": (4096, 14336),
}
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 8192)
BLOCK_TOKENS = (1, 8, 16, 32, 64, 128, 256, 1024, 4096)
BEYOND_L2 = 400 * 2**20
BLOCKS = 8
#: Beyond, torch's int4 product takes so long that it says nothing.
TINYGEMM_TOKENS = 256
#: A code, and in groups of 128 a BF16 scale and a 4-bit zero point: what a weight has to say.
BYTES_A_WEIGHT = 0.5 + 2.5 / 128


@dataclass(frozen=True, kw_only=True)
class Row:
    """Times in microseconds. cublas, tinygemm: None where they were not run."""

    op: str
    tokens: int
    kernel: str
    us: float
    floor_us: float
    gb_s: float
    tflop_s: float
    cublas_us: float | None
    tinygemm_us: float | None

    @property
    def cells(self) -> tuple[str, ...]:
        return (
            f"{self.op:8}",
            f"{self.tokens:6}",
            f"{self.kernel:8}",
            f"{self.us:9.2f}",
            f"{self.gb_s:8.0f}",
            f"{self.tflop_s:8.1f}",
            f"{self.us / self.floor_us:7.2f}",
            _time(self.cublas_us),
            _time(self.tinygemm_us),
        )


HEADER = ("op      ", "tokens", "kernel  ", "       µs", "    GB/s", " TFLOP/s", "× floor")
HEADER += ("   cuBLAS", " tinygemm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--block-tokens", type=int, nargs="+", default=BLOCK_TOKENS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    ceilings = measure_ceilings()
    print(f"{ceilings.bandwidth / 1e12:.2f} TB/s, {ceilings.bf16 / 1e12:.0f} TFLOP/s in BF16")
    print("  ".join(HEADER))
    blocks = [show(measure_block(m, ceilings)) for m in arguments.block_tokens]
    rows = [
        show(row) for name in LINEARS for row in measure_linear(name, arguments.tokens, ceilings)
    ]
    fusions = measure_fusions(ceilings)
    if arguments.json:
        figures = {"ceilings": asdict(ceilings), "blocks": [asdict(row) for row in blocks]}
        figures |= {"linears": [asdict(row) for row in rows], "fusions": fusions}
        save_results(arguments.json, **figures)
    if arguments.plot:
        from kernel_plot import plot_blocks

        plot_blocks(arguments.plot, [asdict(row) for row in blocks])


def show(row: Row) -> Row:
    print("  ".join(row.cells), flush=True)
    return row


def _time(us: float | None) -> str:
    return " " * 9 if us is None else f"{us:9.2f}"


def measure_linear(name: str, tokens: Sequence[int], ceilings: Ceilings) -> list[Row]:
    n, k = LINEARS[name]
    copies = -(-BEYOND_L2 // int(n * k * BYTES_A_WEIGHT))
    tiles = [random_tiles(n, k) for _ in range(copies)]
    dense = [random_dense(n, k) for _ in range(-(-BEYOND_L2 // (n * k * 2)))]
    packed = [random_tinygemm(n, k) for _ in range(copies)]
    rows = []
    for m in tokens:
        x = random_dense(m, k)
        tinygemm = None
        if m <= TINYGEMM_TOKENS:
            tinygemm = each(packed, lambda weight, x=x: tinygemm_linear(x, *weight))
        rows.append(
            row_of(
                name,
                m,
                [(n, k)],
                each(tiles, lambda weight, x=x: w4_tiled_linear(x, weight)),
                each(dense, lambda weight, x=x: F.linear(x, weight)),
                tinygemm,
                ceilings,
            )
        )
    return rows


def measure_block(m: int, ceilings: Ceilings) -> Row:
    shapes = list(LINEARS.values())
    x = {k: random_dense(m, k) for _, k in shapes}
    tiles = [random_tiles(n, k) for _ in range(BLOCKS) for n, k in shapes]
    ours = each(tiles, lambda weight: w4_tiled_linear(x[weight.in_features], weight))
    del tiles
    dense = [random_dense(n, k) for _ in range(BLOCKS // 2) for n, k in shapes]
    cublas = each(dense, lambda weight: F.linear(x[weight.shape[1]], weight))
    return row_of("block", m, shapes, 4 * ours, 4 * cublas, None, ceilings)


def each(weights: Sequence[object], run: Callable[..., object]) -> float:
    """Microseconds for one of these weights, when all have their turn."""

    def run_all() -> None:
        for weight in weights:
            run(weight)

    return microseconds(run_all) / len(weights)


def row_of(
    op: str,
    m: int,
    shapes: Sequence[tuple[int, int]],
    us: float,
    cublas_us: float,
    tinygemm_us: float | None,
    ceilings: Ceilings,
) -> Row:
    gpu = gpu_model(torch.device("cuda", torch.cuda.current_device()))
    kernels = dict.fromkeys(plan_w4_linear(m, n, k, gpu).kernel for n, k in shapes)
    size = sum(n * k * BYTES_A_WEIGHT + 2 * m * (n + k) for n, k in shapes)
    operations = sum(2 * m * n * k for n, k in shapes)
    floors = [
        max(n * k * BYTES_A_WEIGHT / ceilings.bandwidth, 2 * m * n * k / ceilings.bf16)
        for n, k in shapes
    ]
    return Row(
        op=op,
        tokens=m,
        kernel="+".join(kernels),
        us=us,
        floor_us=sum(floors) * 1e6,
        gb_s=size / us / 1e3,
        tflop_s=operations / us / 1e6,
        cublas_us=cublas_us,
        tinygemm_us=tinygemm_us,
    )


def random_tiles(n: int, k: int) -> W4Tiles:
    """Random codes and zero points under scales that keep the products in range."""
    tiles = empty_tiles(n, k, torch.device("cuda"))
    tiles.codes.random_(-(2**31), 2**31 - 1)
    scales = (torch.rand(tiles.params.shape, device="cuda") * 0.01).half().view(torch.int16)
    zeros = torch.randint(16, tiles.params.shape, device="cuda", dtype=torch.int32)
    tiles.params.copy_((zeros | 0x4300) << 16 | scales.to(torch.int32))
    prepare(tiles)
    return tiles


def random_dense(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, device="cuda", dtype=torch.bfloat16)


def random_tinygemm(n: int, k: int) -> tuple[Tensor, Tensor]:
    codes = torch.randint(256, (n, k // 2), device="cuda", dtype=torch.uint8)
    packed = torch.ops.aten._convert_weight_to_int4pack(codes, 8)
    scales_and_zeros = torch.rand(k // 128, n, 2, device="cuda", dtype=torch.bfloat16)
    return packed, scales_and_zeros * 0.01


def tinygemm_linear(x: Tensor, packed: Tensor, scales_and_zeros: Tensor) -> Tensor:
    return torch.ops.aten._weight_int4pack_mm(x, packed, 128, scales_and_zeros)


if __name__ == "__main__":
    main()
