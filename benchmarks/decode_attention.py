"""Attention of a decode step over paged keys and values, against the memory's bandwidth.

    python benchmarks/decode_attention.py --json benchmarks/results/decode_attention.json

Every time is of one launch in a CUDA graph of many, each over the pages of another layer, and all
layers together exceed the L2 cache. Heads are those of a 7B model: 32 over 8 key-value heads of
128 elements. Launches follow each other as in a step of a model: one may start before the one ahead
has ended, but reads its input only afterwards. Who reads what is found once before all launches.
--instances times other compilations of the kernel for a format (token tiles x warps x slots of a
warp's ring) beside the one that the plan chooses.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from gpu_timing import Ceilings, measure_ceilings, microseconds
from machine import save_results
from torch import Tensor

from awqkit_runtime.cache.page_format import PageFormat, pages_for
from awqkit_runtime.cache.pool import PagePool
from awqkit_runtime.kernels.cuda.compiler import compile_programs
from awqkit_runtime.kernels.cuda.launch import device_architecture
from awqkit_runtime.kernels.paged_decode import paged_decode, run_share_rows
from awqkit_runtime.kernels.paged_decode_instance import PagedDecodeInstance, instance_for
from awqkit_runtime.kernels.paged_decode_plan import plan_of
from awqkit_runtime.kernels.w4_tiled_linear import gpu_model

HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
WIDTHS = {"bf16": (16, 16), "int8": (8, 8), "int4": (4, 4), "k8v4": (8, 4)}
#: (batch, context) of the table of a step's times, and larger ones.
SHAPES = (
    *((1, 128), (8, 128), (32, 128), (128, 128), (256, 128)),
    *((16, 1900), (16, 2500), (16, 3700)),  # 64 MB of int8, k8v4 and int4.
    *((1, 15000), (16, 8000), (64, 4096), (256, 1024), (1, 131072), (1, 1048576)),
)
BEYOND_L2 = 200 * 2**20
#: Of few launches a graph's time is its beginning and its end as well.
FEWEST_LAYERS, MOST_LAYERS = 8, 800


@dataclass(frozen=True, kw_only=True)
class Row:
    """us: of one launch. megabytes: of keys, values and parameters that it must read."""

    format: str
    instance: str
    batch: int
    context: int
    megabytes: float
    us: float
    gb_s: float
    #: Of the measured bandwidth.
    share: float

    @property
    def line(self) -> str:
        return (
            f"{self.format:6} {self.instance:10} {self.batch:6} {self.context:8} "
            f"{self.megabytes:9.1f} {self.us:9.2f} {self.gb_s:8.0f} {self.share:7.2f}"
        )


HEADER = "format instance    batch  context        MB        µs     GB/s   share"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--formats", nargs="+", choices=WIDTHS, default=tuple(WIDTHS))
    parser.add_argument("--shapes", nargs="+", type=numbers, default=SHAPES, metavar="BxCONTEXT")
    parser.add_argument("--instances", nargs="+", type=instance, default=(), metavar="FORMAT:TxWxS")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    ceilings = measure_ceilings()
    print(f"{ceilings.bandwidth / 1e12:.2f} TB/s\n{HEADER}")
    device = torch.device("cuda", torch.cuda.current_device())
    instances = {
        (name, batch): choices(name, batch, arguments.instances)
        for name in arguments.formats
        for batch, _ in arguments.shapes
    }
    programs = {instance.program for some in instances.values() for instance in some}
    compile_programs(programs, device_architecture(device))
    rows = []
    for batch, context in arguments.shapes:
        for name in arguments.formats:
            for row in measure(name, batch, context, instances[name, batch], ceilings):
                print(row.line, flush=True)
                rows.append(row)
    if arguments.json:
        save_results(
            arguments.json, ceilings=asdict(ceilings), attention=[asdict(row) for row in rows]
        )


def numbers(text: str) -> tuple[int, ...]:
    """ "16x8000" as (16, 8000)."""
    if not re.fullmatch(r"\d+(x\d+)+", text):
        raise argparse.ArgumentTypeError(f"{text} is not numbers with x between them")
    return tuple(map(int, text.split("x")))


def instance(text: str) -> PagedDecodeInstance:
    """ "int4:2x8x12": the format's instance with other tiles, warps and slots."""
    name, _, rest = text.partition(":")
    if name not in WIDTHS or rest.count("x") != 2:
        raise argparse.ArgumentTypeError(f"{text} is not a format and three numbers")
    tiles, warps, slots = numbers(rest)
    streams = tiles if name != "bf16" else 1
    return replace(
        planned(name, batch=1), token_tiles=tiles, streams=streams, warps=warps, slots=slots
    )


def planned(name: str, batch: int) -> PagedDecodeInstance:
    gpu = gpu_model(torch.device("cuda", torch.cuda.current_device()))
    group = HEADS // KV_HEADS
    return instance_for(HEAD_DIM, *WIDTHS[name], group, gpu, segments=batch * KV_HEADS)


def choices(
    name: str, batch: int, others: Sequence[PagedDecodeInstance]
) -> list[PagedDecodeInstance]:
    """The instance that the plan takes, and those of the same format among others."""
    bits = WIDTHS[name]
    wanted = [other for other in others if (other.key_bits, other.value_bits) == bits]
    return list(dict.fromkeys([planned(name, batch), *wanted]))


def measure(
    name: str,
    batch: int,
    context: int,
    instances: list[PagedDecodeInstance],
    ceilings: Ceilings,
) -> Iterator[Row]:
    one_layer = page_format(name, layers=1)
    size = batch * context * one_layer.bytes_per_token
    layers = min(max(BEYOND_L2 // size + 1, FEWEST_LAYERS), MOST_LAYERS)
    pages = pages_for(context)
    pool = random_pool(page_format(name, layers), batch * pages)
    table = torch.randperm(batch * pages, device="cuda").int().view(batch, pages)
    lengths = torch.full((batch,), context, dtype=torch.int32, device="cuda")
    q = torch.randn(batch, HEADS, HEAD_DIM, device="cuda", dtype=torch.bfloat16)
    for instance in instances:
        us = time_layers(instance, pool, q, table, lengths) / layers
        yield Row(
            format=name,
            instance=f"{instance.token_tiles}x{instance.warps}x{instance.slots}",
            batch=batch,
            context=context,
            megabytes=size / 1e6,
            us=us,
            gb_s=size / us / 1e3,
            share=size / us * 1e6 / ceilings.bandwidth,
        )


def time_layers(
    instance: PagedDecodeInstance, pool: PagePool, q: Tensor, table: Tensor, lengths: Tensor
) -> float:
    plan = plan_of(instance, HEADS // KV_HEADS, gpu_model(q.device))
    rows = run_share_rows(plan, pool.format, HEADS, table, lengths, window=None)

    def attend_in_every_layer() -> None:
        for layer in range(pool.format.num_layers):
            paged_decode(q, pool.layer(layer), rows, scale=HEAD_DIM**-0.5, softcap=None)

    return microseconds(attend_in_every_layer)


def page_format(name: str, layers: int) -> PageFormat:
    k_bits, v_bits = WIDTHS[name]
    return PageFormat(
        num_layers=layers,
        num_kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        k_bits=k_bits,
        v_bits=v_bits,
        dtype=torch.bfloat16,
    )


def random_pool(format: PageFormat, pages: int) -> PagePool:
    """Numbers of a model's magnitude; pages are filled as they are, not through append."""
    pool = PagePool(format, pages, torch.device("cuda"))
    for layer in map(pool.layer, range(format.num_layers)):
        for stored in (layer.keys, layer.values):
            if stored.dtype == torch.uint8:
                stored.random_(0, 256)
            else:
                stored.normal_()
        if layer.params is not None:
            layer.params[..., 0].uniform_(0.01, 0.02)
            layer.params[..., 1].uniform_(-3.0, -2.0)
    return pool


if __name__ == "__main__":
    main()
