"""A block's four linears in one launch (csrc/cuda/w4_chain.cu), against one launch each.

    python benchmarks/w4_chain.py --tokens 1 4 8
"""

from __future__ import annotations

import argparse
import ctypes
import time

import torch
from gpu_timing import microseconds
from kernels import BLOCKS, LINEARS, random_dense, random_tiles

from awqkit_runtime.kernels.cuda.launch import kernel
from awqkit_runtime.kernels.cuda.launch_shape import LaunchShape
from awqkit_runtime.kernels.cuda.sources import Program
from awqkit_runtime.kernels.w4_tiled_linear import prepare, w4_tiled_linear
from awqkit_runtime.kernels.w4_tiles import unpack_tiles

STAGES = 12
SHAPES = list(LINEARS.values())


class Linear(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("codes", "scales", "x", "bias", "y")]
    _fields_ += [(name, ctypes.c_int32) for name in ("n", "k", "slices")]


def chain_type(linears):
    class Chain(ctypes.Structure):
        _fields_ = [("linear", Linear * linears), ("count", ctypes.c_int32), ("m", ctypes.c_int32)]

    return Chain


class Chained:
    def __init__(self, weights, m, *, down_slices, stages=STAGES, grid=132):
        self.weights, self.m = weights, m
        program = Program(
            stem="w4_chain", defines=(f"W4_STAGES={stages}", f"W4_LINEARS={len(weights)}")
        )
        device = torch.device("cuda", 0)
        self.kernel = kernel(program, "w4_chain_kernel", device)
        shared = (20 * stages + 56 + 127) // 128 * 128 + 16384 + 17408 * stages
        self.shape = LaunchShape(
            grid=(grid, 1, 1), block=(640, 1, 1), shared_bytes=shared, overlap=True
        )
        self.chain = chain_type(len(weights))()
        self.chain.count, self.chain.m = len(weights), m
        self.slices = [down_slices if w.in_features > 4096 else 1 for w in weights]
        tiles = [-(-w.out_features // 16) for w in weights]
        most = max(t * s for t, s in zip(tiles, self.slices, strict=True))
        self.workspace = torch.empty(most * 128, device=device)
        self.meetings = torch.zeros(len(weights), dtype=torch.int32, device=device)
        self.tickets = torch.zeros(8 * len(weights), dtype=torch.int32, device=device)
        self.arrived = torch.zeros(max(tiles), dtype=torch.int32, device=device)

    def __call__(self, xs, ys):
        for i, (weight, x, y) in enumerate(zip(self.weights, xs, ys, strict=True)):
            linear = self.chain.linear[i]
            linear.codes, linear.scales = weight.codes.data_ptr(), weight.params.data_ptr()
            linear.x, linear.bias, linear.y = x.data_ptr(), None, y.data_ptr()
            linear.n, linear.k, linear.slices = (
                weight.out_features,
                weight.in_features,
                self.slices[i],
            )
        self.kernel.launch(
            self.shape, (self.chain, self.workspace, self.meetings, self.tickets, self.arrived)
        )

    def clean(self):
        return not any(int(t.abs().max()) for t in (self.meetings, self.tickets, self.arrived))


def exact(x, w):
    q = unpack_tiles(w)
    codes = q.codes.double().view(w.out_features, -1, 128)
    weight = (codes - q.zeros.double().unsqueeze(-1)) * q.scales.double().unsqueeze(-1)
    return x.double() @ weight.view(w.out_features, -1).T


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 4, 8])
    tokens = parser.parse_args().tokens
    torch.manual_seed(0)
    print(torch.cuda.get_device_name(), flush=True)
    tiles = [random_tiles(n, k) for _ in range(BLOCKS) for n, k in SHAPES]
    for weight in tiles[:4]:
        prepare(weight)
    for m in tokens:
        xs = {k: random_dense(m, k) for _, k in SHAPES}
        every_x = [xs[w.in_features] for w in tiles]
        ys = [random_dense(m, w.out_features) for w in tiles]
        now = microseconds(lambda: [w4_tiled_linear(x, w) for x, w in zip(every_x, tiles)])
        print(f"{m} tokens: one launch each {now / BLOCKS:.2f} us a block", flush=True)
        for slices in (4, 6):
            for together in (4, 8, 16, 32):
                parts = [slice(i, i + together) for i in range(0, len(tiles), together)]
                chains = [Chained(tiles[p], m, down_slices=slices) for p in parts]

                def run():
                    for chain, p in zip(chains, parts, strict=True):
                        chain(every_x[p], ys[p])

                for y in ys:
                    y.fill_(float("nan"))
                begin = time.time()
                run()
                torch.cuda.synchronize()
                errors = []
                for i in (0, 1, 2, 3, len(tiles) - 1):
                    want = exact(every_x[i], tiles[i])
                    errors.append(float((ys[i].double() - want).norm() / want.norm()))
                first = [y.clone() for y in ys]
                run()
                torch.cuda.synchronize()
                same = all(torch.equal(a, b) for a, b in zip(first, ys, strict=True))
                right = max(errors) < 2e-3 and same and all(chain.clean() for chain in chains)
                us = microseconds(run) / BLOCKS
                print(
                    f"  slices {slices}, {together} linears a launch: {us:.2f} us a block,"
                    f" error {max(errors):.2e} {'right' if right else 'WRONG'}"
                    f" ({time.time() - begin:.1f} s)",
                    flush=True,
                )


if __name__ == "__main__":
    main()
