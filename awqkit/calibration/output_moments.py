"""How much a block's output minds an error in each of its linears' outputs.

With J the Jacobian of the block's output by a linear's, an error e costs |J e|² = eᵀ (Jᵀ J) e. The
mean of Jᵀ J over the tokens is that of g gᵀ, g the gradient of ⟨n, output⟩ for noise n of unit
variance (Hutchinson, 1990): one pass back through the block. With the inputs' second moments it
factors the block's Gauss-Newton matrix (Martens and Grosse, 2015, "K-FAC"), as Tseng et al., 2025,
"YAQA" (arXiv 2505.22988), do with gradients of the whole model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

#: Outputs whose moments with each other are gathered, at most; those of wide linears in blocks.
MOST_ROWS = 1024
#: Tokens whose gradients are gathered, and those that pass at once; at least one row of each.
TOKENS = 65536
STEP_TOKENS = 4096

#: By a linear's name: the diagonal blocks of its outputs' second moments, float32, on the host.
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
    """Of the named linears, up to a common factor; none of a linear that saw no token.

    weights: the unquantized block's, on the device and in the dtype that compute.  entering: what
    enters it, [rows, T, hidden], on that device or on the host.
    """
    if not linears:
        return {}
    device = weights[f"{linears[0]}.weight"].device
    generator = torch.Generator(device).manual_seed(seed)
    sums = {name: _Sum() for name in linears}
    watched = dict(weights) | {
        f"{name}.weight": _watched(weights[f"{name}.weight"], total.add)
        for name, total in sums.items()
    }
    length = entering.shape[1]
    for batch in entering[: max(1, TOKENS // length)].split(max(1, STEP_TOKENS // length)):
        with torch.enable_grad():
            x = batch.detach().to(device).requires_grad_()
            out = run(watched, x)
            noise = torch.randn(out.shape, generator=generator, dtype=out.dtype, device=device)
            torch.autograd.grad(out, x, noise)
    return {name: total.mean() for name, total in sums.items() if total.tokens}


class _Sum:
    def __init__(self) -> None:
        self.tokens = 0
        self._blocks: list[Tensor] = []

    def add(self, gradient: Tensor) -> None:
        """gradient: by the outputs, [..., tokens, out]."""
        flat = gradient.flatten(0, -2).float()
        parts = flat.tensor_split(row_blocks(flat.shape[1]), dim=1)
        if not self._blocks:
            self._blocks = [part.new_zeros(part.shape[1], part.shape[1]) for part in parts]
        for total, part in zip(self._blocks, parts, strict=True):
            total.addmm_(part.T, part)
        self.tokens += len(flat)

    def mean(self) -> tuple[Tensor, ...]:
        return tuple(total.div_(self.tokens).cpu() for total in self._blocks)


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
