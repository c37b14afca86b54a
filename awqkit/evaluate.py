"""What quantization costs: the same held-out rows through the model before and after."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from awqkit.checkpoint import DecoderConfig
from awqkit.decoder import block_forward, final_logits

#: Tokens whose logits are held at once.
LOGIT_TOKENS = 256


@dataclass(frozen=True, kw_only=True)
class Score:
    """Means over the predicted tokens. kl: nats, from the unquantized model."""

    perplexity: float
    kl: float


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """tokens: how many were predicted, on each of the three models."""

    tokens: int
    original: Score
    nearest: Score
    quantized: Score

    @property
    def gap_closed(self) -> float:
        """1 − KL(quantized) / KL(round to nearest)."""
        return 1.0 - self.quantized.kl / self.nearest.kl if self.nearest.kl > 0 else 0.0


class HeldOutRows:
    """Rows that pass through three models block by block: original, nearest and quantized."""

    def __init__(self, tokens: Tensor, embedded: Tensor) -> None:
        """tokens: int64 [rows, T]; embedded: [rows, T, hidden]."""
        self._tokens = tokens
        self._original = embedded
        self._nearest = embedded.clone()
        self._quantized = embedded.clone()

    def streams(self) -> dict[str, Tensor]:
        """The rows as each model has them so far, [rows, T, hidden], by its name."""
        return {
            "original": self._original,
            "nearest": self._nearest,
            "quantized": self._quantized,
        }

    def go_on_from(self, streams: Mapping[str, Tensor]) -> None:
        """Take the place of rows that have passed some blocks already."""
        self._original = streams["original"]
        self._nearest = streams["nearest"]
        self._quantized = streams["quantized"]

    def advance(
        self,
        config: DecoderConfig,
        layer: int,
        rotary: tuple[Tensor, Tensor],
        *,
        original: Mapping[str, Tensor],
        nearest: Mapping[str, Tensor],
        quantized: Mapping[str, Tensor],
    ) -> None:
        """Pass through one block; the weights are named relative to the layer, of any dtype."""
        for hidden, weights in (
            (self._original, original),
            (self._nearest, nearest),
            (self._quantized, quantized),
        ):
            block = {name: tensor.to(hidden) for name, tensor in weights.items()}
            for row in hidden.split(1):
                row.copy_(block_forward(block, config, layer, row, rotary))

    def scores(self, config: DecoderConfig, norm: Tensor, head: Tensor) -> Evaluation:
        """norm: the final norm's weight [hidden]; head: [vocab, hidden]."""
        streams = (self._original, self._nearest, self._quantized)
        losses, divergences = torch.zeros(3, dtype=torch.float64), torch.zeros(3).double()
        targets = self._tokens[:, 1:].flatten()
        flat = [stream[:, :-1].flatten(0, 1) for stream in streams]
        for start in range(0, len(targets), LOGIT_TOKENS):
            part = slice(start, start + LOGIT_TOKENS)
            logs = [_log_probabilities(x[part], config, norm, head) for x in flat]
            for index, log in enumerate(logs):
                chosen = log.gather(1, targets[part].to(log.device).unsqueeze(1))
                losses[index] -= chosen.sum().cpu()
                divergences[index] += (logs[0].exp() * (logs[0] - log)).sum().cpu()
        count = max(1, len(targets))
        original, nearest, quantized = (
            Score(perplexity=math.exp(float(loss) / count), kl=float(divergence) / count)
            for loss, divergence in zip(losses, divergences, strict=True)
        )
        return Evaluation(
            tokens=len(targets), original=original, nearest=nearest, quantized=quantized
        )


def _log_probabilities(hidden: Tensor, config: DecoderConfig, norm: Tensor, head: Tensor) -> Tensor:
    """[tokens, hidden] → float32 [tokens, vocab]."""
    return torch.log_softmax(final_logits(hidden, norm.to(hidden), head.to(hidden), config), dim=-1)
