"""What codes and inputs as e4m3 numbers cost and how exact they are (csrc/cuda/w4_e4m3_probe.cu).

python benchmarks/w4_e4m3_probe.py
"""

from __future__ import annotations

import torch
from kernels import random_dense, random_tiles
from torch import Tensor

from awqkit_runtime.kernels.cuda.compiler import compile_programs
from awqkit_runtime.kernels.cuda.launch import device_architecture, kernel
from awqkit_runtime.kernels.cuda.launch_shape import LaunchShape
from awqkit_runtime.kernels.cuda.sources import Program
from awqkit_runtime.kernels.w4_tiles import W4Tiles, unpack_tiles

DEVICE = torch.device("cuda", 0)
BLOCK_ROWS = 256
#: The largest input of a token lies in the binade below this, e4m3's largest number being 448.
LARGEST = 256


def split(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x BF16 [m, k] → e4m3 [k/128, 2m, 128], sums FP32 [k/128, m], scales FP32 [m].

    x · scale is the first m columns' numbers plus a sixteenth of the others'. Inputs lie in the
    order in which the bytes of a word of codes hold them.
    """
    m, k = x.shape
    peak = x.abs().amax(1).float().clamp(min=2.0**-100)
    scales = torch.exp2(torch.floor(torch.log2(LARGEST / peak)))
    scaled = x.float() * scales[:, None]
    first = scaled.to(torch.float8_e4m3fn).float()
    second = ((scaled - first) * 16).to(torch.float8_e4m3fn).float()
    # Input 16s + 8h + 2c + p lies at 16s + 4c + 2p + h.
    both = torch.stack((first, second)).view(2, m, k // 128, 8, 2, 4, 2)
    both = both.permute(2, 0, 1, 3, 5, 6, 4).reshape(k // 128, 2 * m, 128)
    sums = scaled.view(m, -1, 128).sum(-1).T.contiguous()
    return both.to(torch.float8_e4m3fn).contiguous(), sums, scales


def exact(x: Tensor, weight: W4Tiles) -> Tensor:
    q = unpack_tiles(weight)
    codes = q.codes.double().view(weight.out_features, -1, 128)
    dense = (codes - q.zeros.double().unsqueeze(-1)) * q.scales.double().unsqueeze(-1)
    return x.double() @ dense.view(weight.out_features, -1).T


def probe(tokens: int, timed: int, x: Tensor, weight: W4Tiles, groups: int) -> tuple[Tensor, float]:
    """y FP32 [tokens, rows], and the median cycles of a group of 256 rows."""
    program = program_of(tokens, timed)
    both, sums, scales = split(x)
    blocks = weight.out_features // BLOCK_ROWS
    y = torch.full((tokens, weight.out_features), torch.nan, device=DEVICE)
    cycles = torch.zeros(blocks, dtype=torch.int64, device=DEVICE)
    shared_bytes = 2 * tokens * 128 + 16 * 1088 + 1024
    shape = LaunchShape(grid=(blocks, 1, 1), block=(512, 1, 1), shared_bytes=shared_bytes)
    operands = (weight.codes, weight.params, both, sums, y, cycles, groups, weight.out_features)
    for _ in range(2):
        kernel(program, "w4_e4m3_probe", DEVICE).launch(shape, operands)
    torch.cuda.synchronize()
    return y.double() / scales[:, None].double(), float(cycles.double().median()) / groups


def program_of(tokens: int, timed: int) -> Program:
    defines = (f"PROBE_TOKENS={tokens}", f"PROBE_TIMED={timed}")
    return Program(stem="w4_e4m3_probe", defines=defines)


def inputs(kind: str, tokens: int, k: int) -> Tensor:
    x = random_dense(tokens, k)
    if kind == "outliers":
        x[:, ::97] *= 1000
    return x.abs() if kind == "one sign" else x


def main() -> None:
    torch.manual_seed(0)
    programs = {program_of(tokens, timed) for tokens in (16, 32, 64) for timed in (0, 1)}
    compile_programs(programs, device_architecture(DEVICE))
    weight = random_tiles(132 * BLOCK_ROWS, 4096)
    for tokens in (16, 32, 64):
        for kind in ("normal", "outliers", "one sign"):
            x = inputs(kind, tokens, 4096)
            want = exact(x, weight)
            y, _ = probe(tokens, 0, x, weight, 32)
            error = float((y - want).norm() / want.norm())
            rounded = float((y.bfloat16().double() - want).norm() / want.norm())
            print(f"{tokens} tokens, {kind}: error {error:.2e}, rounded to BF16 {rounded:.2e}")
        _, cycles = probe(tokens, 1, x, weight, 32)
        print(f"{tokens} tokens: {cycles:.0f} cycles a group of 256 rows", flush=True)


if __name__ == "__main__":
    main()
