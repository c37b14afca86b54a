"""Every program that a model may need on an architecture."""

from __future__ import annotations

import torch

from awqkit_runtime.kernels import (
    decode_places,
    greedy,
    page_gather,
    rank_choice,
    rank_sum,
    rms_norm,
    rotary,
    rotary_append,
    silu_mul,
    top_p,
    w4_repack,
)
from awqkit_runtime.kernels.cuda.compiler import compile_programs
from awqkit_runtime.kernels.cuda.launch import device_architecture
from awqkit_runtime.kernels.cuda.sources import Program
from awqkit_runtime.kernels.paged_decode_instance import all_instances
from awqkit_runtime.kernels.w4_plan import MULTIPROCESSORS, GpuModel, all_plans

#: (out, in) of linears that between them reach every branch of the plan.
_SHAPES = (
    *((128, 128), (1024, 1024), (2048, 2048), (6144, 4096), (4096, 4096), (28672, 4096)),
    *((4096, 14336), (2048, 8192), (57344, 8192), (8192, 28672), (5120, 25600)),
)
#: Those that do not depend on the shapes of a model.
FIXED = (
    w4_repack.PROGRAM,
    rms_norm.PROGRAM,
    rotary.PROGRAM,
    silu_mul.PROGRAM,
    decode_places.PROGRAM,
    greedy.PROGRAM,
    top_p.PROGRAM,
)
#: Those of several GPUs that share a model.
OF_RANKS = (rank_sum.PROGRAM, rank_choice.PROGRAM)
#: Those that depend on the size of its heads alone.
_OF_HEADS = (rotary_append.PROGRAMS, page_gather.PROGRAMS)


def all_programs(arch: str) -> list[Program]:
    """For one of the architectures that w4_plan.MULTIPROCESSORS names."""
    gpu = GpuModel(arch=arch, multiprocessors=MULTIPROCESSORS[arch])
    plans = [plan for n, k in _SHAPES for plan in all_plans(n, k, gpu)]
    of_heads = (program for programs in _OF_HEADS for program in programs.values())
    decodes = (instance.program for instance in all_instances(gpu))
    programs = {*FIXED, *OF_RANKS, *of_heads, *decodes, *(plan.program for plan in plans)}
    return sorted(programs, key=lambda program: program.name)


def compile_fixed(device: torch.device, head_dim: int) -> None:
    """Compile what any model with heads of this size needs on a CUDA device, all at once.

    Otherwise they would be compiled one by one, each when it is first launched.
    """
    of_heads = (programs[head_dim] for programs in _OF_HEADS if head_dim in programs)
    compile_programs((*FIXED, *of_heads), device_architecture(device))
