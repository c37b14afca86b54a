"""Which of the kernels for few tokens is fastest for each linear, in the order of a block.

python benchmarks/w4_stationary_mix.py 1 2 4 8 12 16
"""

from __future__ import annotations

import itertools
import sys

import torch
from gpu_timing import microseconds
from kernels import BLOCKS, LINEARS, random_dense, random_tiles

from awqkit_runtime.kernels.w4_decode_plan import plan_decode
from awqkit_runtime.kernels.w4_prefill_plan import plan_prefill
from awqkit_runtime.kernels.w4_stationary_plan import stationary_launch
from awqkit_runtime.kernels.w4_tiled_linear import gpu_model, prepare, run_plan
from awqkit_runtime.kernels.w4_tiles import unpack_tiles

NAMES, SHAPES = list(LINEARS), list(LINEARS.values())


def exact(x, w):
    q = unpack_tiles(w)
    codes = q.codes.double().view(w.out_features, -1, 128)
    weight = (codes - q.zeros.double().unsqueeze(-1)) * q.scales.double().unsqueeze(-1)
    return x.double() @ weight.view(w.out_features, -1).T


def main() -> None:
    torch.manual_seed(0)
    gpu = gpu_model(torch.device("cuda", 0))
    print(torch.cuda.get_device_name(), flush=True)
    tiles = [random_tiles(n, k) for _ in range(BLOCKS) for n, k in SHAPES]
    for weight in tiles[:4]:
        prepare(weight)
    for m in map(int, sys.argv[1:]):
        xs = {k: random_dense(m, k) for _, k in SHAPES}
        outs = [random_dense(m, w.out_features) for w in tiles]
        plans = []
        for n, k in SHAPES:
            of = {
                "batch": plan_prefill(m, n, k, gpu).plan,
                "stationary": stationary_launch(m, n, k, gpu),
            }
            decode = plan_decode(m, n, k, gpu)
            if decode is not None:
                of["decode"] = decode.plan
            plans.append(of)
        print(f"{m} tokens, each alone:", flush=True)
        for i, (name, (n, k)) in enumerate(zip(NAMES, SHAPES, strict=True)):
            cells = []
            for kind, plan in plans[i].items():
                outs[i].fill_(float("nan"))
                for _ in range(3):
                    run_plan(plan, xs[k], tiles[i], None, outs[i])
                torch.cuda.synchronize()
                want = exact(xs[k], tiles[i])
                error = float((outs[i].double() - want).norm() / want.norm())

                def alone(plan=plan, i=i, k=k):
                    for j in range(i, len(tiles), 4):
                        run_plan(plan, xs[k], tiles[j], None, outs[j])

                us = microseconds(alone) / BLOCKS
                cells.append(f"{kind} {us:6.2f}{'' if error < 2e-3 else f' WRONG {error:.1e}'}")
            print(f"  {name:8}", "  ".join(cells), flush=True)
        found = []
        for mix in itertools.product(*plans):

            def block(mix=mix):
                for j, w in enumerate(tiles):
                    run_plan(plans[j % 4][mix[j % 4]], xs[w.in_features], w, None, outs[j])

            found.append((microseconds(block) / BLOCKS, mix))
        for us, mix in sorted(found)[:5]:
            print(f"  in order {us:.2f}", *mix, flush=True)


if __name__ == "__main__":
    main()
