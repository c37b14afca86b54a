"""Where the ranks' parts of a layer's output are added up: behind the linear, or in the norm."""

from __future__ import annotations

from torch import Tensor, nn

from awqkit_runtime.engine.parallel.communicator import Communicator
from awqkit_runtime.engine.parallel.weights import pad_input
from awqkit_runtime.kernels.rank_sum import rank_sum, rank_sum_add_rms_norm
from awqkit_runtime.layers.norm import AddingNorm, RMSNorm


class PartialLinear(nn.Module):
    """A linear that has some columns of its weight: x of these → this rank's part of the sum."""

    def __init__(self, linear: nn.Module, padding: tuple[int, int] = (0, 0)) -> None:
        """padding: columns of zeros that x gets before and after its own."""
        super().__init__()
        self.linear = linear
        self._padding = padding

    def forward(self, x: Tensor) -> Tensor:
        part: Tensor = self.linear(pad_input(x, self._padding))
        return part


class SummedLinear(nn.Module):
    """The same → the sum over all ranks."""

    def __init__(self, partial: PartialLinear, communicator: Communicator) -> None:
        super().__init__()
        self.partial = partial
        self._communicator = communicator

    def forward(self, x: Tensor) -> Tensor:
        part = self.partial(x)
        peers = self._communicator.peers
        if peers is not None and peers.can_sum(part):
            return rank_sum(peers.sums, part)
        return self._communicator.sum_(part)


class SummingNorm(nn.Module):
    """A norm whose `delta` is this rank's part of a sum."""

    def __init__(self, norm: AddingNorm, communicator: Communicator) -> None:
        """norm: a decoder's own."""
        super().__init__()
        assert isinstance(norm, RMSNorm)
        self.norm = norm
        self._communicator = communicator

    def after_add(self, x: Tensor, delta: Tensor | None) -> tuple[Tensor, Tensor]:
        """x + the sum over all ranks of delta, and its norm; x, delta [T, n], delta is consumed."""
        norm, peers = self.norm, self._communicator.peers
        if delta is None:
            return norm.after_add(x, None)
        if peers is not None and peers.can_sum(delta):
            return rank_sum_add_rms_norm(
                *(peers.sums, x, delta.contiguous(), norm.weight, norm.eps),
                unit_offset=norm.unit_offset,
            )
        return norm.after_add(x, self._communicator.sum_(delta))
