"""A launch as plain data: decided without a GPU, printable, and the same every time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from awqkit_runtime.kernels.cuda.launch_shape import LaunchShape
from awqkit_runtime.kernels.cuda.sources import Program

#: Multiprocessors of a usual card of each architecture that we name.
MULTIPROCESSORS = {"sm_80": 108, "sm_89": 128, "sm_90a": 132, "sm_100a": 148}
#: Shared memory of a multiprocessor (CUDA C++ Programming Guide, technical specifications).
_SHARED_KIB = {
    **{"sm_80": 164, "sm_86": 100, "sm_87": 164, "sm_89": 100, "sm_90a": 228},
    **{"sm_100a": 228, "sm_103a": 228, "sm_120a": 100, "sm_121a": 100},
}
_LEAST_SHARED_KIB = 100
#: What each block on a multiprocessor takes of it besides its own.
_BLOCK_OVERHEAD = 2**10

#: What a kernel takes before m, n and k: an address, or a tensor map where the name says so.
Operand = Literal[
    "x", "codes", "params", "x_map", "codes_map", "params_map", "bias", "y", "workspace", "flags"
]


@dataclass(frozen=True, kw_only=True)
class GpuModel:
    """arch: as NVRTC spells it. multiprocessors: of the whole card."""

    arch: str
    multiprocessors: int

    @property
    def shared_bytes(self) -> int:
        """Shared memory of one multiprocessor."""
        return _SHARED_KIB.get(self.arch, _LEAST_SHARED_KIB) * 2**10

    def blocks_that_fit(self, shared_bytes: int) -> int:
        """How many blocks of so much shared memory one multiprocessor holds."""
        return self.shared_bytes // (shared_bytes + _BLOCK_OVERHEAD)

    def shared_bytes_a_block(self, blocks: int) -> int:
        """The most that each of so many blocks on one multiprocessor may take."""
        return self.shared_bytes // blocks - _BLOCK_OVERHEAD


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """What one copy through a tensor map brings: tokens × inputs of x, row tiles of the weight.

    code_inputs: inputs of the weight's codes, whose params it brings for one group.
    """

    tokens: int
    inputs: int
    row_tiles: int = 0
    code_inputs: int = 64


@dataclass(frozen=True, kw_only=True)
class LaunchPlan:
    """One launch. workspace_bytes and flags (32-bit, zero) are shared by all launches in a stream.

    operands: the arguments before m, n and k.  extra: those after.  boxes: of the tensor maps.
    """

    kernel: str
    program: Program
    entry: str
    shape: LaunchShape
    operands: tuple[Operand, ...]
    extra: tuple[int, ...]
    boxes: Boxes | None = None
    workspace_bytes: int = 0
    flags: int = 0


@dataclass(frozen=True, kw_only=True)
class TimedPlan:
    """cycles: that it is estimated to take, to be compared with other plans of the same shape."""

    plan: LaunchPlan
    cycles: float


def ceil_div(number: int, divisor: int) -> int:
    return -(-number // divisor)
