"""A small kernel of what those of the searches need, to learn whether they can run on a GPU."""

from __future__ import annotations

from subprocess import SubprocessError

import torch
import triton
import triton.language as tl
from triton.runtime.errors import TritonError

#: The smallest matrices that tensor cores multiply through Triton.
SIZE = 16
#: What it raises without a C compiler, Python's headers, a place for its cache, or a fit driver.
FAILURES = (TritonError, SubprocessError, OSError, ImportError, RuntimeError)


def run_trial(device: torch.device) -> None:
    """Compile and run it; raises one of FAILURES where something stands in the way."""
    ones = torch.ones(SIZE, SIZE, dtype=torch.float16, device=device)
    found = torch.empty(SIZE, SIZE, device=device)
    _multiply[(1,)](ones, found, SIZE=SIZE)
    if not bool((found == SIZE).all()):
        raise RuntimeError("a product came out wrong")


@triton.jit
def _multiply(factor_at, found_at, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The square of a matrix of float16, through bfloat16."""
    at = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    factor = tl.load(factor_at + at)
    found = tl.dot(factor, factor)
    tl.store(found_at + at, found.to(tl.bfloat16).to(tl.float32))
