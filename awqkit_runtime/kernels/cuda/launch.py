"""Kernels as callables: loaded once a device, launched on torch's current stream.

A launch allocates nothing and does not synchronise, so CUDA graphs capture it. CuPy's own launch
has no attributes; cuLaunchKernelEx has, and they let a kernel start while its predecessor drains
(programmatic dependent launch, from sm_90 on).
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from awqkit_runtime.kernels.cuda.compiler import architecture, cubin
from awqkit_runtime.kernels.cuda.launch_shape import LaunchShape
from awqkit_runtime.kernels.cuda.sources import Program

#: Shared memory that a block may take without asking for more.
_DEFAULT_SHARED_BYTES = 48 * 1024
_OVERLAP_CAPABILITY = (9, 0)

#: A tensor passes its address, None a null pointer, int and float 32 bits; a ctypes value itself.
Argument = Tensor | int | float | None | Any


class Kernel:
    """One entry point of a program on one device."""

    def __init__(self, program: Program, entry: str, device: torch.device) -> None:
        from cuda.bindings import driver

        self.name = f"{program.name}:{entry}"
        self._driver = driver
        self._device = device
        self._may_overlap = torch.cuda.get_device_capability(device) >= _OVERLAP_CAPABILITY
        self._lock = threading.Lock()
        self._configs: dict[LaunchShape, Any] = {}
        self._shared_bytes = _DEFAULT_SHARED_BYTES
        self._function = checked(
            driver.cuModuleGetFunction(_module(program, device), entry.encode())
        )

    def launch(self, shape: LaunchShape, arguments: Sequence[Argument]) -> None:
        """Enqueue on the current stream of the device. RuntimeError where CUDA refuses it."""
        if torch.cuda.current_device() != self._device.index:
            with torch.cuda.device(self._device):
                self._launch(shape, arguments)
        else:
            self._launch(shape, arguments)

    def _launch(self, shape: LaunchShape, arguments: Sequence[Argument]) -> None:
        values = [_as_c(argument) for argument in arguments]
        pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        # As torch.cuda.current_stream, which makes an object of it and takes as long as the launch.
        stream = torch._C._cuda_getCurrentRawStream(self._device.index)
        with self._lock:  # The configuration of a shape is one for all threads.
            config = self.prepare(shape)
            config.hStream = stream
            (status,) = self._driver.cuLaunchKernelEx(
                config, self._function, ctypes.addressof(pointers), 0
            )
        if status != self._driver.CUresult.CUDA_SUCCESS:
            raise RuntimeError(f"launching {self.name} with {shape} failed: {status.name}")

    def prepare(self, shape: LaunchShape) -> Any:
        """What the driver needs to know of a launch; a first launch makes it if nobody has."""
        config = self._configs.get(shape)
        if config is None:
            config = self._configs[shape] = self._config(shape)
        return config

    def _config(self, shape: LaunchShape) -> Any:
        self._allow_shared(shape.shared_bytes)
        config = self._driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = shape.grid
        config.blockDimX, config.blockDimY, config.blockDimZ = shape.block
        config.sharedMemBytes = shape.shared_bytes
        config.attrs = self._attributes(shape)
        config.numAttrs = len(config.attrs)
        return config

    def _attributes(self, shape: LaunchShape) -> list[Any]:
        ids = self._driver.CUlaunchAttributeID
        attributes = []
        if shape.overlap and self._may_overlap:
            overlap = self._driver.CUlaunchAttribute()
            overlap.id = ids.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
            overlap.value.programmaticStreamSerializationAllowed = 1
            attributes.append(overlap)
        return attributes

    def _allow_shared(self, shared_bytes: int) -> None:
        if shared_bytes <= self._shared_bytes:
            return
        attribute = self._driver.CUfunction_attribute
        maximum = attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        checked(self._driver.cuFuncSetAttribute(self._function, maximum, shared_bytes))
        self._shared_bytes = shared_bytes


@cache
def kernel(program: Program, entry: str, device: torch.device) -> Kernel:
    """The entry point, compiled and loaded if this is its first use. device: with its index."""
    return Kernel(program, entry, device)


def device_architecture(device: torch.device) -> str:
    """The architecture that kernels for this device are compiled for."""
    return architecture(torch.cuda.get_device_capability(device))


@cache
def _module(program: Program, device: torch.device) -> Any:
    from cuda.bindings import driver

    code = cubin(program, device_architecture(device))
    # The driver loads into the context of the thread; torch makes it on first use.
    with torch.cuda.device(device):
        torch.cuda.current_stream(device).synchronize()
        return checked(driver.cuModuleLoadData(code))


def _as_c(argument: Argument) -> Any:
    if isinstance(argument, Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    if argument is None:
        return ctypes.c_void_p()
    if isinstance(argument, int):
        return ctypes.c_int32(argument)
    if isinstance(argument, float):
        return ctypes.c_float(argument)
    return argument


def checked(result: tuple[Any, ...]) -> Any:
    """The value that a driver call returned beside its status."""
    status, *values = result
    if int(status) != 0:
        raise RuntimeError(f"CUDA driver call failed: {status.name}")
    return values[0] if values else None
