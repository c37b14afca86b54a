"""A whole quantized decoder whose codes learn: forward and backward, a block at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from awqkit.checkpoint import DecoderConfig, QuantizedWeight
from awqkit.decoder import RotaryTables, block_forward
from awqkit.tuning.latent import Latent

Stored = Mapping[str, Tensor | QuantizedWeight]


class TunedBlocks:
    """The blocks on one device. Gradients of one block exist at a time: each is used at once."""

    def __init__(
        self,
        blocks: Sequence[Stored],
        offsets: Sequence[Mapping[str, Tensor]],
        config: DecoderConfig,
        rotary: RotaryTables,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """blocks: tensors and integers as they will be stored, named relative to the layer.

        offsets: of the integers' weights, see Latent.of.
        dtype: of activations, and of weights where they are multiplied.
        """
        self._config, self._rotary, self._dtype = config, rotary, dtype
        self._latents: list[dict[str, Latent]] = []
        self._dense: list[dict[str, Tensor]] = []
        for block, offset in zip(blocks, offsets, strict=True):
            self._latents.append(
                {
                    name: Latent.of(weight.to(device), offset[name].to(device))
                    for name, weight in block.items()
                    if isinstance(weight, QuantizedWeight)
                }
            )
            self._dense.append(
                {
                    name: weight.to(device, dtype)
                    for name, weight in block.items()
                    if isinstance(weight, Tensor)
                }
            )

    def forward(self, x: Tensor) -> Tensor:
        """[rows, T, hidden] through all blocks."""
        for layer in range(len(self._latents)):
            x = self._run(layer, self._weights(layer), x)
        return x

    def remember(self, x: Tensor) -> list[Tensor]:
        """What enters each block, and what leaves the last one."""
        entering = [x]
        for layer in range(len(self._latents)):
            entering.append(self._run(layer, self._weights(layer), entering[-1]))
        return entering

    def step(
        self, entering: Sequence[Tensor], gradient: Tensor, *, rate: float, count: int
    ) -> None:
        """Move the codes of every block, from the last one to the first.

        entering: from `remember`.  gradient: of the loss by what leaves the last block.  rate,
        count: see Latent.step.
        """
        for layer in range(len(self._latents) - 1, -1, -1):
            gradient = self._step_block(layer, entering[layer], gradient, rate, count)

    def codes(self, layer: int) -> dict[str, Tensor]:
        """A copy of a block's codes, uint8 [out, in]."""
        return {name: latent.stored.codes.clone() for name, latent in self._latents[layer].items()}

    def _step_block(
        self, layer: int, x: Tensor, gradient: Tensor, rate: float, count: int
    ) -> Tensor:
        """The gradient by what enters the block."""
        latents, weights = self._latents[layer], self._weights(layer)
        learning = [weights[name].requires_grad_() for name in latents]
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            out = self._run(layer, weights, x)
            before, *gradients = torch.autograd.grad(
                out, [x, *learning], gradient, allow_unused=True
            )
        for latent, by_weight in zip(latents.values(), gradients, strict=True):
            if by_weight is not None:  # of an expert that no token was routed to
                latent.step(by_weight, rate=rate, count=count)
        return before

    def _weights(self, layer: int) -> dict[str, Tensor]:
        latents = self._latents[layer].items()
        return self._dense[layer] | {
            n: latent.stored.dequantize(self._dtype) for n, latent in latents
        }

    def _run(self, layer: int, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return block_forward(weights, self._config, layer, x, self._rotary.of(layer))
