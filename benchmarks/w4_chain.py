"""A block's four linears in one launch (csrc/cuda/w4_chain.cu), against one launch each.

    python benchmarks/w4_chain.py --tokens 1 4 8
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import time

import numpy as np
import torch
from gpu_timing import microseconds
from kernels import BLOCKS, LINEARS, random_dense, random_tiles

from awqkit_runtime.kernels.cuda.launch import _module, kernel
from awqkit_runtime.kernels.cuda.launch_shape import LaunchShape
from awqkit_runtime.kernels.cuda.sources import Program
from awqkit_runtime.kernels.w4_tiled_linear import prepare, w4_tiled_linear
from awqkit_runtime.kernels.w4_tiles import unpack_tiles

SHAPES = list(LINEARS.values())


class Linear(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("codes", "scales", "bias", "y")]
    _fields_ += [(name, ctypes.c_int32) for name in ("n", "k", "slices", "exchange", "partials")]


def chain_type(linears):
    class Chain(ctypes.Structure):
        _fields_ = [("linear", Linear * linears), ("x", ctypes.c_void_p)]
        _fields_ += [(name, ctypes.c_int32) for name in ("count", "m", "set_bytes")]

    return Chain


def up16(n):
    return (n + 15) // 16 * 16


class Chained:
    def __init__(self, weights, m, *, down_slices, stages, warps=16, early=1000000, grid=132, trace=False, more=()):
        self.weights, self.m = weights, m
        tiles = 1 if m <= 8 else 2
        defines = (f"W4_STAGES={stages}", f"W4_LINEARS={len(weights)}", f"W4_TOKEN_TILES={tiles}")
        defines += (f"W4_WARPS={warps}", f"W4_EARLY={early}")
        self.program = Program(stem="w4_chain", defines=defines + ("W4_TRACE=1",) * trace + more)
        self.device = torch.device("cuda", 0)
        self.kernel = kernel(self.program, "w4_chain_kernel", self.device)
        shared = (20 * stages + 64 + 127) // 128 * 128 + 1024 * warps * tiles + 34816 * stages
        self.shape = LaunchShape(
            grid=(grid, 1, 1), block=(32 * (warps + 4), 1, 1), shared_bytes=shared, overlap=True
        )
        self.chain = chain_type(len(weights))()
        self.slices = [down_slices if w.in_features > 4096 else 1 for w in weights]
        at = 128 * len(weights)
        for i, (w, slices) in enumerate(zip(weights, self.slices, strict=True)):
            linear = self.chain.linear[i]
            linear.codes, linear.scales = w.codes.data_ptr(), w.params.data_ptr()
            linear.n, linear.k, linear.slices = w.out_features, w.in_features, slices
            linear.exchange = at
            if i + 1 < len(weights):
                at = up16(at + 2 * m * ((w.out_features + 31) // 32 * 32))
            linear.partials = at
            if slices > 1:
                at += -(-w.out_features // 16) * slices * 512 * tiles
        self.chain.count, self.chain.m, self.chain.set_bytes = len(weights), m, up16(at)
        self.workspace = torch.full((128 + 2 * up16(at),), 255, dtype=torch.uint8, device="cuda")
        self.workspace[:128] = 0

    def __call__(self, x, ys):
        self.chain.x = x.data_ptr()
        for linear, y in zip(self.chain.linear, ys, strict=True):
            linear.y = y.data_ptr()
        self.kernel.launch(self.shape, (self.chain, self.workspace))

    def stamps(self):
        from cuda.bindings import driver, runtime

        err, ptr, size = driver.cuModuleGetGlobal(_module(self.program, self.device), b"w4_trace")
        host = np.zeros(size // 8, dtype=np.uint64)
        kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        runtime.cudaMemcpy(host.ctypes.data, int(ptr), size, kind)
        return host.reshape(160, len(self.weights), 32)[:132].astype(np.int64)


def exact(x, w):
    q = unpack_tiles(w)
    codes = q.codes.double().view(w.out_features, -1, 128)
    weight = (codes - q.zeros.double().unsqueeze(-1)) * q.scales.double().unsqueeze(-1)
    return x[:, : w.in_features].double() @ weight.view(w.out_features, -1).T


def timeline(m, tiles, order, how):
    chains = [Chained(tiles[i : i + 4], m, trace=True, **how)
              for i in range(0, len(tiles), 4)]
    x = random_dense(m, tiles[0].in_features)
    ys = [random_dense(m, w.out_features) for w in tiles[:4]]
    us = microseconds(lambda: [chain(x, ys) for chain in chains])
    t = chains[-1].stamps()
    zero = t[:, 0, 2].min()
    print(f"  timeline, {m} tokens, {how}: {us / len(chains):.2f} us with stamps")
    names = ("fetch begins", "all fetched", "x there", "last product", "last sum", "joined", "seen", "loaded")
    for i, name in enumerate(order):
        cells = []
        for what in range(8):
            v = (t[:, i, what] - zero) / 1000
            cells.append(f"{names[what]} {v.min():6.2f} {np.median(v):6.2f} {v.max():6.2f}")
        print(f"    {name:8}", " | ".join(cells), flush=True)
        for block in (1, 99):
            v = t[block, i, 8:]
            v = v[v > 0]
            begin = t[block, i, 2]
            print(f"      block {block}: x at {(begin - zero) / 1000:.2f}, tiles after",
                  " ".join(f"{(a - begin) / 1000:.2f}" for a in v), flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--stages", type=int, nargs="+", default=[6])
    tokens = parser.parse_args().tokens
    stages = parser.parse_args().stages
    torch.manual_seed(0)
    print(torch.cuda.get_device_name(), flush=True)
    # As the runtime would: attention lies between qkv and o.
    names = ["o", "gate_up", "down", "qkv"]
    tiles = [random_tiles(*LINEARS[name]) for _ in range(BLOCKS) for name in names]
    for weight in tiles[:4]:
        prepare(weight)
    for m in tokens:
        every_x = {k: random_dense(m, k) for k in (4096, 14336)}
        now = microseconds(lambda: [w4_tiled_linear(every_x[w.in_features], w) for w in tiles])
        print(f"{m} tokens: one launch each {now / BLOCKS:.2f} us a block", flush=True)
        x = every_x[4096]
        variants = [
            (6, 16, 10**6, 1), (6, 16, 4, 1), (6, 8, 4, 1), (6, 16, 4, 2), (6, 16, 4, 4),
            (6, 16, 2, 4), (6, 8, 4, 4), (6, 8, 2, 4), (5, 16, 4, 4), (6, 16, 2, 16),
        ]
        if m > 8:
            variants = [(5, 8, 4, 1), (5, 8, 4, 2), (5, 8, 4, 4), (5, 8, 2, 4)]
        for s, warps, early, together in variants:
            slices = 4
            how = dict(down_slices=slices, stages=s, warps=warps, early=early)
            parts = [slice(i, i + together) for i in range(0, len(tiles), together)]
            chains = [Chained(tiles[p], m, **how) for p in parts]
            ys = [random_dense(m, w.out_features) for w in tiles]

            def run():
                for chain, p in zip(chains, parts, strict=True):
                    chain(every_x[chain.weights[0].in_features], ys[p])

            for y in ys:
                y.fill_(float("nan"))
            begin = time.time()
            run()
            torch.cuda.synchronize()
            errors = []
            for i in (0, 1, 2, 3, len(tiles) - 3, len(tiles) - 1):
                source = every_x[tiles[i].in_features] if i % together == 0 else ys[i - 1]
                want = exact(source, tiles[i])
                errors.append(float((ys[i].double() - want).norm() / want.norm()))
            first = [y.clone() for y in ys]
            run()
            torch.cuda.synchronize()
            same = all(torch.equal(a, b) for a, b in zip(first, ys, strict=True))
            right = max(errors) < 2e-3 and same
            us = microseconds(run) / BLOCKS
            print(
                f"  {s} stages, {warps} warps, early {early}, {together} a launch: {us:.2f} us a block,"
                f" error {max(errors):.2e} {'right' if right else f'WRONG {same} {errors}'}"
                f" ({time.time() - begin:.1f} s)",
                flush=True,
            )
        for s, warps, early in ((6 - (m > 8), 8 if m > 8 else 16, 4),):
            how = dict(down_slices=4, stages=s, warps=warps, early=early)
            for more in (("W4_NO_MATH=1",), ("W4_NO_COPY=1",)):
              for together in (4,):
                chains = [
                    Chained(tiles[i : i + together], m, more=more, **how)
                    for i in range(0, len(tiles), together)
                ]
                us = microseconds(lambda: [c(every_x[c.weights[0].in_features], ys[: len(c.weights)]) for c in chains]) / BLOCKS
                print(f"  {warps} warps {together} a launch {more[0]}: {us:.2f} us a block", flush=True)
            timeline(m, tiles, names, how)


if __name__ == "__main__":
    main()
