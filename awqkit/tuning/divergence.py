"""What tuning minimises: the KL divergence of the next-token distributions from the original's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from awqkit.checkpoint import DecoderConfig
from awqkit.decoder import final_logits

#: Elements of logits that are held at once.
LOGIT_ELEMENTS = 1 << 25


@dataclass(frozen=True, kw_only=True)
class Readout:
    """From the last block's output to logits. norm: [hidden]; head: [vocab, hidden]."""

    config: DecoderConfig
    norm: Tensor
    head: Tensor

    def log_probabilities(self, hidden: Tensor) -> Tensor:
        """[tokens, hidden] → float32 [tokens, vocab]."""
        return torch.log_softmax(final_logits(hidden, self.norm, self.head, self.config), dim=-1)


def divergence(readout: Readout, hidden: Tensor, original: Tensor) -> float:
    """Mean KL(original ‖ this) in nats per token.

    hidden, original: what the last block gives in either model, [rows, T, hidden].
    """
    total = torch.zeros((), dtype=torch.float64, device=hidden.device)
    for x, wanted in zip(_parts(readout, hidden), _parts(readout, original), strict=True):
        total += _summed(readout, x, wanted)
    return float(total) / _tokens(hidden)


def divergence_gradient(readout: Readout, hidden: Tensor, original: Tensor) -> Tensor:
    """Of `divergence` by hidden, in its shape and dtype."""
    gradient = torch.empty_like(hidden)
    parts = (_parts(readout, x) for x in (hidden, original, gradient))
    for x, wanted, into in zip(*parts, strict=True):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            loss = _summed(readout, x, wanted) / _tokens(hidden)
            into.copy_(torch.autograd.grad(loss, x)[0])
    return gradient


def _summed(readout: Readout, x: Tensor, wanted: Tensor) -> Tensor:
    with torch.no_grad():
        expected = readout.log_probabilities(wanted)
    return (expected.exp() * (expected - readout.log_probabilities(x))).sum()


def _parts(readout: Readout, x: Tensor) -> tuple[Tensor, ...]:
    """Views [tokens, hidden] whose logits fit into memory."""
    return x.flatten(0, 1).split(max(1, LOGIT_ELEMENTS // len(readout.head)))


def _tokens(hidden: Tensor) -> int:
    return hidden.shape[0] * hidden.shape[1]
