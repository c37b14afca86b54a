"""Mixtures of kernels over a block's four linears, in order."""
import argparse, itertools, sys
import torch
from gpu_timing import microseconds
from kernels import BLOCKS, LINEARS, random_dense, random_tiles
from w4_chain import Chained, exact
from awqkit_runtime.kernels.w4_tiled_linear import prepare, w4_tiled_linear

torch.manual_seed(0)
print(torch.cuda.get_device_name(), flush=True)
names = list(LINEARS)
tiles = [random_tiles(*LINEARS[name]) for _ in range(BLOCKS) for name in names]
for weight in tiles[:4]:
    prepare(weight)
for m in map(int, sys.argv[1:]):
    x = {k: random_dense(m, k) for k in (4096, 14336)}
    y = [random_dense(m, w.out_features) for w in tiles[:4]]
    made = {}
    for s, warps in ((5, 16), (5, 8), (4, 16)):
        made[f"i{warps}.{s}"] = [Chained([w], m, down_slices=4, stages=s, warps=warps) for w in tiles]
    def call(kind, i):
        w = tiles[i]
        if kind == "now":
            w4_tiled_linear(x[w.in_features], w)
        else:
            made[kind][i](x[w.in_features], [y[i % 4]])
    for kind in made:
        for i in range(4):
            y[i].fill_(float("nan"))
            call(kind, i)
            torch.cuda.synchronize()
            want = exact(x[tiles[i].in_features], tiles[i])
            e = float((y[i].double() - want).norm() / want.norm())
            assert e < 2e-3, (kind, i, e)
    kinds = ["now", *made]
    print(f"{m} tokens alone:", flush=True)
    for i, name in enumerate(names):
        cells = []
        for kind in kinds:
            us = microseconds(lambda: [call(kind, j) for _ in range(2) for j in range(i, 4 * BLOCKS, 4)])
            cells.append(f"{kind} {us / BLOCKS / 2:6.2f}")
        print(f"  {name:8}", "  ".join(cells), flush=True)
    times = []
    for mix in itertools.product(kinds[:3], kinds[:3], kinds[:3], kinds):
        us = microseconds(lambda: [call(mix[j % 4], j) for j in range(4 * BLOCKS)])
        times.append((us / BLOCKS, mix))
    times.sort()
    for us, mix in times[:8]:
        print(f"  {us:.2f}", mix, flush=True)
    print("  all now", [round(us, 2) for us, mix in times if set(mix) == {"now"}], flush=True)
