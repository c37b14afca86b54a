"""How much the whole model minds an error in each linear's outputs: the Fisher information.

Second moments of the gradient by the outputs, E[g gᵀ], of the log-probability of tokens that the
model itself draws. With those of the inputs they factor the Hessian of the divergence from the
original model (Martens and Grosse, 2015, "K-FAC"; Tseng et al., 2025, "YAQA", arXiv 2505.22988).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from awqkit.checkpoint import DecoderConfig
from awqkit.decoder import RotaryTables, block_forward
from awqkit.tuning.divergence import Readout, sampled_gradient

#: Outputs whose moments with each other are gathered, at most; those of wide linears in blocks.
MOST_ROWS = 1024
#: Tokens that pass at once, at least one row.
STEP_TOKENS = 8192

#: By a linear's name: the diagonal blocks of its outputs' second moments, float32, on the host.
OutputMoments = Mapping[str, tuple[Tensor, ...]]


def output_moments(
    blocks: Sequence[Mapping[str, Tensor]],
    config: DecoderConfig,
    rotary: RotaryTables,
    readout: Readout,
    embedded: Tensor,
    *,
    linears: Callable[[Mapping[str, Tensor]], Sequence[str]],
    seed: int,
) -> list[OutputMoments]:
    """Of the named linears of every block, up to a common factor.

    blocks: the unquantized model's, on the device and in the dtype that compute.  embedded: what
    enters the first one, [rows, T, hidden].  linears: the names of a block's that are wanted.
    """
    device = readout.head.device
    generator = torch.Generator(device).manual_seed(seed)
    sums: list[dict[str, _Sum]] = [{name: _Sum() for name in linears(block)} for block in blocks]

    def run(layer: int, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return block_forward(weights, config, layer, x, rotary.of(layer))

    for batch in embedded.split(max(1, STEP_TOKENS // embedded.shape[1])):
        entering = [batch.to(device)]
        for layer, block in enumerate(blocks):
            entering.append(run(layer, block, entering[-1]))
        gradient = sampled_gradient(readout, entering[-1], generator)
        for layer in range(len(blocks) - 1, -1, -1):
            watched = {
                name: _watched(blocks[layer][f"{name}.weight"], total.add)
                for name, total in sums[layer].items()
            }
            weights = dict(blocks[layer]) | {f"{name}.weight": w for name, w in watched.items()}
            with torch.enable_grad():
                x = entering[layer].detach().requires_grad_()
                (gradient,) = torch.autograd.grad(run(layer, weights, x), x, gradient)
    return [
        {name: total.mean() for name, total in of_block.items() if total.tokens}
        for of_block in sums
    ]


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
