"""How much a block's output minds an error in each of its linears' outputs.

With J the Jacobian of the block's output by a linear's, an error e costs |J e|² = eᵀ (Jᵀ J) e. The
mean of Jᵀ J over the tokens is that of g gᵀ, g the gradient of ⟨n, output⟩ for noise n of unit
variance (Hutchinson, 1990): one pass back through the block. With the inputs' second moments it
factors the block's Gauss-Newton matrix (Martens and Grosse, 2015, "K-FAC"), as Tseng et al., 2025,
"YAQA" (arXiv 2505.22988), do with gradients of the whole model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

#: Outputs whose moments with each other are gathered, at most; those of wide linears in blocks.
MOST_ROWS = 1024
#: Tokens that pass at once, at least one row.
STEP_TOKENS = 4096

#: cuDNN's way back through attention is not among them: it is compiled anew in every process, for
#: seconds, and saves less than one.
ATTENTIONS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]

#: By a linear's name: the diagonal blocks of its outputs' second moments, float32, up to a factor.
OutputMoments = Mapping[str, tuple[Tensor, ...]]
#: Runs a block, given its tensors, on [rows, T, hidden].
RunBlock = Callable[[Mapping[str, Tensor], Tensor], Tensor]


def output_moments(
    run: RunBlock,
    weights: Mapping[str, Tensor],
    entering: Tensor,
    *,
    linears: Sequence[str],
    seed: int,
) -> OutputMoments:
    """Of the named linears, summed over the tokens; none of a linear that saw no token.

    weights: the unquantized block's, on the device and in the dtype that compute.  entering: what
    enters it, [rows, T, hidden], on that device or on the host.
    """
    if not linears:
        return {}
    device = weights[f"{linears[0]}.weight"].device
    generator = torch.Generator(device).manual_seed(seed)
    sums: dict[str, tuple[Tensor, ...]] = {}

    def add(name: str, gradient: Tensor) -> None:
        sums.update(added(sums, {name: _of_gradient(gradient)}))

    watched = dict(weights) | {
        f"{name}.weight": _watched(weights[f"{name}.weight"], partial(add, name))
        for name in linears
    }
    for batch in entering.split(max(1, STEP_TOKENS // entering.shape[1])):
        with torch.enable_grad(), sdpa_kernel(ATTENTIONS):
            x = batch.detach().to(device).requires_grad_()
            out = run(watched, x)
            noise = torch.randn(out.shape, generator=generator, dtype=out.dtype, device=device)
            # With the noise as an argument it would import sympy.
            torch.autograd.grad((noise * out).sum(), x)
    return sums


def added(total: OutputMoments, more: OutputMoments) -> dict[str, tuple[Tensor, ...]]:
    """Both together; the tensors of total change in place."""
    sums = dict(total)
    for name, parts in more.items():
        if name in sums:
            parts = tuple(a.add_(b) for a, b in zip(sums[name], parts, strict=True))
        sums[name] = parts
    return sums


def _of_gradient(gradient: Tensor) -> tuple[Tensor, ...]:
    """gradient: by a linear's outputs, [..., tokens, out]."""
    flat = gradient.flatten(0, -2)
    return tuple(map(_gram, flat.tensor_split(row_blocks(flat.shape[1]), dim=1)))


def _gram(x: Tensor) -> Tensor:
    """xᵀ x [out, out] in float32 of [tokens, out]; on a GPU 16 bits are multiplied as they are."""
    if x.is_cuda and x.dtype != torch.float32:
        return torch.mm(x.T, x, out_dtype=torch.float32)
    x = x.float()
    return x.T @ x


def row_blocks(rows: int) -> int:
    """Into how many blocks so many outputs are split (torch.tensor_split)."""
    return -(-rows // MOST_ROWS)


class _Watched(Tensor):
    """A weight that tells of the gradients by the outputs of the linear that it belongs to."""

    on_gradient: Callable[[Tensor], None]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.linear:
            return super().__torch_function__(func, types, args, kwargs or {})
        x, weight, *bias = args
        out = F.linear(x, weight.as_subclass(Tensor), *bias)
        out.register_hook(weight.on_gradient)
        return out


def _watched(weight: Tensor, on_gradient: Callable[[Tensor], None]) -> _Watched:
    watched = weight.as_subclass(_Watched)
    watched.on_gradient = on_gradient
    return watched
