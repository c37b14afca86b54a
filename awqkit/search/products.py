"""Matrix products of the searches: on a GPU, by its tensor cores."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from importlib.util import find_spec
from threading import RLock

import torch
from torch import Tensor

#: Of a matrix on the host, those that are copied to the device at once.
ROWS_AT_ONCE = 4096
#: Compute capability of the first GPUs that multiply as the kernels do.
OLDEST_GPU = (8, 0)
#: torch rounds products as switches of the whole process say, read when a product is launched: one
#: thread at a time turns them.
_SWITCHES = RLock()


def product(
    a: Tensor, b: Tensor, *, onto: Tensor | None = None, beta: float = 1.0, alpha: float = 1.0
) -> Tensor:
    """a @ b, float32, on the device of a; b may wait on the host.

    onto: becomes beta · onto + alpha · a @ b, in place, where it is given.

    On a GPU the factors are rounded to TF32 (eleven bits), sums are not: output errors come out
    within some 1e-5 of themselves, at a seventh of the time.
    """
    if a.device != b.device:
        streamed = _streamed(a, b)
        return streamed if onto is None else onto.mul_(beta).add_(streamed, alpha=alpha)
    with _switched("fp32_precision", "tf32") if a.is_cuda else nullcontext():
        return a @ b if onto is None else onto.addmm_(a, b, beta=beta, alpha=alpha)


def half_product(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
    """a @ b of float16 factors on a GPU into out, float16 or float32; sums are float32.

    One product, or a batch of them.
    Of factors near 1 it is as exact as TF32 is, and twice as fast.
    """
    with _switched("allow_fp16_reduced_precision_reduction", False):
        multiply = torch.mm if a.dim() == 2 else torch.bmm
        if out.dtype == torch.float32:
            return multiply(a, b, out_dtype=torch.float32, out=out)
        return multiply(a, b, out=out)


@contextmanager
def exact_products() -> Iterator[None]:
    """In here no other thread rounds products, so float32 ones are float32's."""
    with _SWITCHES:
        yield


def _streamed(a: Tensor, b: Tensor) -> Tensor:
    """The product with a matrix that waits on the host, some of its rows at a time."""
    total = torch.zeros(len(a), b.shape[1], device=a.device)
    for start in range(0, len(b), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        total += product(a[:, rows], b[rows].to(a.device))
    return total


@contextmanager
def _switched(name: str, value: str | bool) -> Iterator[None]:
    """With a switch of torch.backends.cuda.matmul turned, for this thread alone."""
    matmul = torch.backends.cuda.matmul
    with _SWITCHES:
        before = getattr(matmul, name)
        setattr(matmul, name, value)
        try:
            yield
        finally:
            setattr(matmul, name, before)


@cache
def has_triton() -> bool:
    """Whether the searches' kernels run on this GPU; the plain loops serve where they do not."""
    obstacle = _obstacle()
    if obstacle:
        warnings.warn(
            f"The kernels of the searches cannot run on this GPU ({obstacle}). Plain loops do "
            "their work, which takes several times as long.",
            RuntimeWarning,
            stacklevel=2,
        )
    return not obstacle


def _obstacle() -> str:
    """What keeps the kernels from running; nothing where nothing does."""
    if find_spec("triton") is None:
        return "torch came without Triton, their compiler"
    if torch.cuda.get_device_capability() < OLDEST_GPU:
        return f"it is older than compute capability {'.'.join(map(str, OLDEST_GPU))}"
    from awqkit.search.trial_kernel import FAILURES, run_trial

    try:
        run_trial(torch.device("cuda"))
    except FAILURES as error:
        return " ".join(str(error).split())
    return ""
