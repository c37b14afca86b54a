"""The start of a GPU, begun while Python still imports what will use it.

The driver's start and a context take a quarter of a second, which torch waits for where it first
touches the device. Begun in a thread by the driver's own functions, which need nothing of Python,
that is over when torch has been imported, and torch finds the context there.
"""

from __future__ import annotations

import ctypes
import re
import threading

_DRIVER = "libcuda.so.1"


def start_cuda(device: str) -> None:
    """device: as EngineConfig takes it. Where it is none of CUDA, or not there, nothing is done."""
    found = re.fullmatch(r"(?:auto|cuda)(?::(\d+))?", device)
    if found is not None:
        threading.Thread(target=_make_context, args=(int(found[1] or 0),)).start()


def _make_context(number: int) -> None:
    """Whatever is wrong, torch will say it better."""
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        return
    device, context = ctypes.c_int(), ctypes.c_void_p()
    if driver.cuInit(0) == 0 and driver.cuDeviceGet(ctypes.byref(device), number) == 0:
        driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
