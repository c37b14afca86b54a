"""The compiled CPU kernels: where the library lies, what it can do here, and how to call it.

The library is plain C, built by setup.py next to this file. Where it is missing (no compiler at
installation) everything still runs on the torch reference.
"""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

LIBRARY_PATH = Path(__file__).with_name("_cpu.so")

#: Equal to kAbiVersion in csrc/cpu/abi.h; another number means a library of another source tree.
ABI_VERSION = 1

#: The variants of the library, slowest first; the position is the number in csrc/cpu/abi.h.
ISAS = ("scalar", "avx2", "avx512", "avx512_bf16")
REFERENCE = "reference"

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

OUT_OF_MEMORY = 1
_pointer, _int32, _int64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64


@cache
def library() -> ctypes.CDLL | None:
    """The loaded library, or None with one warning where there is none that fits."""
    try:
        loaded = _load()
    except (OSError, AttributeError, ImportError) as error:
        warnings.warn(
            f"The compiled CPU kernels cannot be used ({error}): 4-bit layers run on slow torch "
            "code. Install a C++ compiler (g++ or clang++), then install awqkit again.",
            stacklevel=2,
        )
        return None
    loaded.awqkit_w4_linear.argtypes = [
        *(_int32, _int32),  # isa, dtype
        *(_pointer, _pointer, _pointer, _pointer, _pointer),  # x, codes, params, bias, out
        *(_int64, _int64, _int64),  # tokens, out_features, in_features
        *(_int32, _pointer),  # threads, parallel_region
    ]
    return loaded


def _load() -> ctypes.CDLL:
    if not LIBRARY_PATH.is_file():
        raise ImportError("they were not built when awqkit was installed")
    loaded = ctypes.CDLL(str(LIBRARY_PATH))
    if loaded.awqkit_abi_version() != ABI_VERSION:
        raise ImportError(f"{LIBRARY_PATH} was built from other sources")
    return loaded


@cache
def supported_isas() -> tuple[str, ...]:
    """What `w4_linear` can run as here, slowest first: the reference, then compiled variants."""
    loaded = library()
    if loaded is None:
        return (REFERENCE,)
    variants = [name for code, name in enumerate(ISAS) if loaded.awqkit_isa_supported(code)]
    return (REFERENCE, *variants)


@cache
def cpu_isa() -> str:
    """The variant that runs unless a caller names another: the fastest that this processor has."""
    return supported_isas()[-1]


@cache
def parallel_region() -> int | None:
    """OpenMP's entry point, from the very runtime that torch uses; None where torch has none.

    Sharing torch's threads keeps two pools from spinning against each other on the same cores.
    """
    try:
        torch_libraries = ctypes.CDLL(torch._C.__file__)
        return ctypes.cast(torch_libraries.GOMP_parallel, ctypes.c_void_p).value
    except (OSError, AttributeError):
        return None


def w4_linear(
    isa: str, x: Tensor, codes: Tensor, group_params: Tensor, bias: Tensor | None, out: Tensor
) -> None:
    """Run one variant on contiguous tensors: x [..., in], out [..., out] and bias of one dtype.

    Raises MemoryError when there is no room for the prepared activations.
    """
    out_features, in_features = out.shape[-1], x.shape[-1]
    status = _w4_linear(isa)(
        DTYPE_CODES[x.dtype],
        x.data_ptr(),
        codes.data_ptr(),
        group_params.data_ptr(),
        None if bias is None else bias.data_ptr(),
        out.data_ptr(),
        x.numel() // in_features,
        out_features,
        in_features,
        torch.get_num_threads(),
        parallel_region(),
    )
    if status == OUT_OF_MEMORY:
        raise MemoryError("w4_linear found no memory for its prepared activations")


@cache
def _w4_linear(isa: str) -> Callable[..., int]:
    loaded = library()
    if loaded is None or isa not in supported_isas():
        raise ValueError(f"isa {isa!r} is not one of {supported_isas()}")
    return partial(loaded.awqkit_w4_linear, ISAS.index(isa))
