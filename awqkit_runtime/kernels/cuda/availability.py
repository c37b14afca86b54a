"""Whether the CUDA kernels can run on a device, and if not, what is to be done about it."""

from __future__ import annotations

import importlib
import warnings
from functools import cache

import torch

_OLDEST = (8, 0)
_INSTALL = "install them with `pip install 'awqkit[cuda]'`"


@cache
def missing_for_cuda(device: torch.device) -> str | None:
    """Why the CUDA kernels cannot run on this device, with the cure; None where they can."""
    for module, package in (("cupy", "CuPy"), ("cuda.bindings.driver", "cuda-bindings")):
        try:
            importlib.import_module(module)
        except ImportError as error:
            return f"{package} is missing ({error}): {_INSTALL}"
    capability = torch.cuda.get_device_capability(device)
    if capability < _OLDEST:
        return (
            f"{torch.cuda.get_device_name(device)} has compute capability "
            f"{capability[0]}.{capability[1]}, and they need {_OLDEST[0]}.{_OLDEST[1]}"
        )
    return _missing_compiler(capability)


def cuda_kernels_usable(device: torch.device) -> bool:
    """Whether they can run; where they cannot, the reason is shown once."""
    reason = missing_for_cuda(device)
    if reason is not None:
        _warn(reason)
    return reason is None


@cache
def _warn(reason: str) -> None:
    warnings.warn(
        f"awqkit's CUDA kernels are not used, and 4-bit models run slowly: {reason}.",
        stacklevel=3,
    )


def _missing_compiler(capability: tuple[int, int]) -> str | None:
    from awqkit_runtime.kernels.cuda.compiler import architecture, nvrtc_version
    from awqkit_runtime.kernels.cuda.sources import source_folder

    try:
        version = nvrtc_version()
        source_folder()
    except (ImportError, OSError, RuntimeError) as error:
        return f"{' '.join(str(error).split())}: {_INSTALL}"
    from cupy.cuda import nvrtc

    number = int(f"{capability[0]}{capability[1]}")
    if number not in nvrtc.getSupportedArchs():
        return f"NVRTC {version} does not know {architecture(capability)}: install a newer one"
    return None
