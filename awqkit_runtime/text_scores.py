"""How well a model predicts a text through its paged cache, and how far it is from another one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from awqkit_runtime.cache.key_frame import PLAIN_FRAME, KeyFrame
from awqkit_runtime.cache.page_format import PageFormat, pages_for
from awqkit_runtime.cache.paged_attention import PagedAttention, SequenceSpan
from awqkit_runtime.cache.pool import PagePool
from awqkit_runtime.errors import NumericsError
from awqkit_runtime.models.decoder import Decoder

#: Tokens that one pass of the decoder computes.
PREFILL_TOKENS = 512
#: Bytes of the float32 logits that are held at once.
_LOGIT_BYTES = 2**26


@dataclass(frozen=True, kw_only=True)
class TextScore:
    """Sums over the predicted tokens, in nats."""

    #: How many were predicted: of each chunk all but the first.
    predicted: int
    negative_log_likelihood: float
    #: KL divergence of the model from the reference, Σ p_ref · log(p_ref / p); None without one.
    divergence: float | None
    #: What the reference loses on the same tokens; None without one.
    reference_loss: float | None

    @property
    def perplexity(self) -> float:
        return math.exp(self.negative_log_likelihood / self.predicted)

    @property
    def reference_perplexity(self) -> float | None:
        loss = self.reference_loss
        return None if loss is None else math.exp(loss / self.predicted)

    @property
    def kl(self) -> float | None:
        """Nats per token."""
        return None if self.divergence is None else self.divergence / self.predicted


class PagedReader:
    """Reads texts of up to seqlen tokens with a decoder, keys and values in pages of a policy."""

    def __init__(
        self,
        decoder: Decoder,
        *,
        quant_policy: int | str,
        seqlen: int,
        key_frame: KeyFrame = PLAIN_FRAME,
    ) -> None:
        """key_frame: how the pages lay keys."""
        self.decoder = decoder
        page_format = PageFormat.for_policy(decoder.config, quant_policy, decoder.dtype)
        self._pages = tuple(range(pages_for(seqlen)))
        self._pool = PagePool(page_format, len(self._pages), decoder.device, key_frame=key_frame)

    def hidden(self, ids: Tensor) -> Tensor:
        """ids int64 [T], a text from its beginning → [T, hidden] after the final norm."""
        ids = ids.to(self.decoder.device)
        parts, done = [], 0
        for part in ids.split(PREFILL_TOKENS):
            span = SequenceSpan(start=0, length=len(part), context=done, pages=self._pages)
            state = PagedAttention(self._pool, [span], config=self.decoder.config)
            positions = torch.arange(done, done + len(part), device=ids.device)
            parts.append(self.decoder.hidden(part, positions, state))
            done += len(part)
        return torch.cat(parts)

    def log_probabilities(self, hidden: Tensor) -> Tensor:
        """[R, hidden] → float32 [R, vocab]; NumericsError where they are not finite."""
        logits = self.decoder.logits(hidden)
        if not bool(logits.isfinite().all()):
            raise NumericsError(
                f"The model gave logits that are not finite in {self.decoder.dtype}; try dtype "
                "bfloat16 or float32, or fetch the model again."
            )
        return logits.log_softmax(dim=-1)


@torch.inference_mode()
def score_text(
    model: PagedReader,
    ids: Tensor,
    *,
    seqlen: int,
    reference: PagedReader | None = None,
    on_chunk: Callable[[int], None] = lambda tokens: None,
) -> TextScore:
    """Score ids, int64 [tokens], in chunks of seqlen that do not overlap; the last may be shorter.

    The first token of a chunk is given, not predicted. on_chunk: called with the tokens of every
    chunk that is done.
    """
    predicted, loss, divergence, reference_loss = 0, 0.0, 0.0, 0.0
    for chunk in ids.split(seqlen):
        for targets, logs, reference_logs in _slices(model, reference, chunk):
            loss += _loss(logs, targets)
            predicted += len(targets)
            if reference_logs is not None:
                terms = reference_logs.exp() * (reference_logs - logs)
                divergence += float(terms.sum(dtype=torch.float64))
                reference_loss += _loss(reference_logs, targets)
        on_chunk(len(chunk))
    return TextScore(
        predicted=predicted,
        negative_log_likelihood=loss,
        divergence=None if reference is None else divergence,
        reference_loss=None if reference is None else reference_loss,
    )


def _loss(logs: Tensor, targets: Tensor) -> float:
    """−Σ log p(target); logs [R, vocab], targets [R]."""
    return -float(logs.gather(1, targets.unsqueeze(1)).sum(dtype=torch.float64))


def _slices(
    model: PagedReader, reference: PagedReader | None, chunk: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Next tokens [R] and the log-probabilities of both models [R, vocab], a few rows at a time."""
    if len(chunk) < 2:
        return
    hidden = model.hidden(chunk)
    reference_hidden = None if reference is None else reference.hidden(chunk)
    targets = chunk[1:].to(hidden.device)
    rows = max(1, _LOGIT_BYTES // (4 * model.decoder.config.vocab_size))
    for start in range(0, len(targets), rows):
        part = slice(start, min(start + rows, len(targets)))
        logs = model.log_probabilities(hidden[part])
        if reference is None or reference_hidden is None:
            yield targets[part], logs, None
        else:
            yield targets[part], logs, reference.log_probabilities(reference_hidden[part])
