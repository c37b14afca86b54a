"""Where a model's numbers live and in which types."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Fusions:
    """CUDA kernels that do several operations at once; without one, torch does them singly."""

    #: A residual's add and the RMS norm after it.
    norm: bool = True
    #: The activation of the gate and its product with up.
    activation: bool = True
    #: The norms of the heads and the rotary embedding; over pages also storing and attending.
    rotary: bool = True
    #: A linear's bias, within its product.
    bias: bool = True


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The device, and the dtype of the dense weights and of unquantized cache pages.

    has_cuda_kernels: whether our kernels can run on the device, if it is a CUDA device.
    """

    device: torch.device
    dtype: torch.dtype
    has_cuda_kernels: bool = True
    fusions: Fusions = Fusions()

    @property
    def uses_cuda_kernels(self) -> bool:
        """Whether CUDA kernels compute here. They take BF16; other dtypes run in torch."""
        return self.device.type == "cuda" and self.dtype == torch.bfloat16 and self.has_cuda_kernels

    @property
    def activation_dtype(self) -> torch.dtype:
        """The dtype between the linears.

        On a CPU always float32: most lack fast 16-bit arithmetic, and it keeps the results of
        a sequence independent of what it is batched with.
        """
        return torch.float32 if self.device.type == "cpu" else self.dtype

    def weight(self, tensor: Tensor) -> Tensor:
        alone = self._copies_alone(tensor)
        return tensor.to(device=self.device, dtype=self.dtype, non_blocking=alone)

    def stacked_weight(self, parts: Sequence[Tensor]) -> Tensor:
        """The rows of all of them, one after the other."""
        if len(parts) == 1:
            return self.weight(parts[0])
        rows = sum(len(part) for part in parts)
        whole = torch.empty((rows, *parts[0].shape[1:]), dtype=self.dtype, device=self.device)
        for target, part in zip(whole.split([len(part) for part in parts]), parts, strict=True):
            target.copy_(part, non_blocking=self._copies_alone(part))
        return whole

    def _copies_alone(self, tensor: Tensor) -> bool:
        """Whether the device can copy it while the host goes on.

        Not asked for a CPU: where there is a GPU too, CUDA might be started for the answer.
        """
        return self.device.type == "cuda" and tensor.is_pinned()

    def parameter(self, tensor: Tensor) -> Tensor:
        """A small vector that meets activations elementwise: a bias, a norm's weight."""
        return tensor.to(device=self.device, dtype=self.activation_dtype)
