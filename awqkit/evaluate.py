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
#: Points of the curve of KL over positions, at most.
POSITION_BINS = 64


@dataclass(frozen=True, kw_only=True)
class Score:
    """Means over the predicted tokens. kl: nats, from the unquantized model.

    agreement: share of tokens whose most likely continuation is the unquantized model's.
    """

    perplexity: float
    kl: float
    agreement: float


@dataclass(frozen=True, kw_only=True)
class PositionKl:
    """Mean KL over the tokens at positions first … last of their rows, in nats."""

    first: int
    last: int
    nearest: float
    quantized: float


@dataclass(frozen=True, kw_only=True)
class TokenKl:
    """Quantiles of the quantized model's KL over the predicted tokens, in nats."""

    median: float
    ninth_decile: float
    last_percentile: float
    worst: float


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """tokens: how many were predicted, on each of the three models."""

    tokens: int
    original: Score
    nearest: Score
    quantized: Score
    positions: tuple[PositionKl, ...]
    spread: TokenKl

    @property
    def gap_closed(self) -> float:
        """1 − KL(quantized) / KL(round to nearest)."""
        return 1.0 - self.quantized.kl / self.nearest.kl if self.nearest.kl > 0 else 0.0


class HeldOutRows:
    """Rows that pass through three models block by block: original, nearest and quantized."""

    def __init__(self, tokens: Tensor, original: Tensor, quantized: Tensor) -> None:
        """tokens: int64 [rows, T]; the others: as both embeddings have them, [rows, T, hidden]."""
        self._tokens = tokens
        self._original = original
        self._nearest = quantized.clone()
        self._quantized = quantized

    def streams(self) -> dict[str, Tensor]:
        """The rows as each model has them so far, [rows, T, hidden], by its name."""
        return {
            "original": self._original,
            "nearest": self._nearest,
            "quantized": self._quantized,
        }

    def go_on_from(self, streams: Mapping[str, Tensor]) -> None:
        """Take the place of rows that have passed some blocks already."""
        device = self._original.device
        self._original = streams["original"].to(device)
        self._nearest = streams["nearest"].to(device)
        self._quantized = streams["quantized"].to(device)

    def begin_again(self, embedded: Tensor) -> None:
        """Take the quantized model's rows back to where they entered it, [rows, T, hidden]."""
        self._quantized = embedded

    def advance_quantized(
        self,
        config: DecoderConfig,
        layer: int,
        rotary: tuple[Tensor, Tensor],
        weights: Mapping[str, Tensor],
    ) -> None:
        """Pass through one block of the quantized model alone."""
        _advance(self._quantized, weights, config, layer, rotary)

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
            _advance(hidden, weights, config, layer, rotary)

    def scores(
        self, config: DecoderConfig, norm: Tensor, head: Tensor, *, stored_head: Tensor
    ) -> Evaluation:
        """norm: the final norm's weight [hidden]; head: [vocab, hidden].

        stored_head: what stands in its place in the quantized models.
        """
        heads = (head, stored_head, stored_head)
        streams = (self._original, self._nearest, self._quantized)
        targets = self._tokens[:, 1:].flatten()
        losses, agreements = torch.zeros(3, dtype=torch.float64), torch.zeros(3).double()
        divergences = torch.zeros(3, len(targets), dtype=torch.float64)
        flat = [stream[:, :-1].flatten(0, 1) for stream in streams]
        for start in range(0, len(targets), LOGIT_TOKENS):
            part = slice(start, start + LOGIT_TOKENS)
            logs = [
                _log_probabilities(x[part], config, norm, its_head)
                for x, its_head in zip(flat, heads, strict=True)
            ]
            for index, log in enumerate(logs):
                chosen = log.gather(1, targets[part].to(log.device).unsqueeze(1))
                losses[index] -= chosen.sum().cpu()
                divergences[index, part] = (logs[0].exp() * (logs[0] - log)).sum(-1).cpu().double()
                agreements[index] += (log.argmax(-1) == logs[0].argmax(-1)).sum().cpu()
        count = max(1, len(targets))
        original, nearest, quantized = (
            Score(
                perplexity=math.exp(float(loss) / count),
                kl=float(divergence.sum()) / count,
                agreement=float(agreement) / count,
            )
            for loss, divergence, agreement in zip(losses, divergences, agreements, strict=True)
        )
        return Evaluation(
            tokens=len(targets),
            original=original,
            nearest=nearest,
            quantized=quantized,
            positions=_by_position(divergences[1:].view(2, len(self._tokens), -1).mean(1)),
            spread=_spread(divergences[2]),
        )


def _by_position(divergences: Tensor) -> tuple[PositionKl, ...]:
    """divergences: float64 [2, T], of the nearest and of the quantized model."""
    length = divergences.shape[1]
    step = max(1, -(-length // POSITION_BINS))
    return tuple(
        PositionKl(
            first=first,
            last=min(first + step, length) - 1,
            nearest=float(divergences[0, first : first + step].mean()),
            quantized=float(divergences[1, first : first + step].mean()),
        )
        for first in range(0, length, step)
    )


def _spread(divergences: Tensor) -> TokenKl:
    ordered = divergences.sort().values
    at = [ordered[int(share * (len(ordered) - 1))] for share in (0.5, 0.9, 0.99, 1.0)]
    median, ninth_decile, last_percentile, worst = map(float, at)
    return TokenKl(
        median=median, ninth_decile=ninth_decile, last_percentile=last_percentile, worst=worst
    )


def _log_probabilities(hidden: Tensor, config: DecoderConfig, norm: Tensor, head: Tensor) -> Tensor:
    """[tokens, hidden] → float32 [tokens, vocab]."""
    return torch.log_softmax(final_logits(hidden, norm.to(hidden), head.to(hidden), config), dim=-1)


def _advance(
    hidden: Tensor,
    weights: Mapping[str, Tensor],
    config: DecoderConfig,
    layer: int,
    rotary: tuple[Tensor, Tensor],
) -> None:
    """Through one block, in place."""
    block = {name: tensor.to(hidden) for name, tensor in weights.items()}
    for row in hidden.split(1):
        row.copy_(block_forward(block, config, layer, row, rotary))
