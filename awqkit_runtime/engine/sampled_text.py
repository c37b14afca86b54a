"""A short text that a model samples itself, to try things on before it is asked anything."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from awqkit.checkpoint import DecoderConfig
from awqkit.checkpoint.canonical import canonical_shapes
from awqkit_runtime.cache.page_format import PageFormat, pages_for
from awqkit_runtime.cache.paged_attention import PagedAttention, SequenceSpan
from awqkit_runtime.cache.pool import PagePool
from awqkit_runtime.engine.runner import require_finite
from awqkit_runtime.models.decoder import Decoder

_ROWS = 16
_ROW_TOKENS = 64
#: On a CPU rows get shorter, so that weights times tokens stay below this …
_CPU_WORK = 2**36
#: … down to so many tokens.
_FEWEST_ROW_TOKENS = 16


@dataclass(frozen=True, kw_only=True)
class SampledText:
    """Rows of text, each of one length, and where in a session they stand."""

    #: int64 [rows, tokens]
    ids: Tensor
    #: int64 [rows]: the position of each row's first token.
    starts: Tensor

    @property
    def positions(self) -> Tensor:
        """int64 [rows, tokens]"""
        offsets = torch.arange(self.ids.shape[1], device=self.ids.device)
        return self.starts.unsqueeze(1) + offsets


@torch.inference_mode()
def sample_text(decoder: Decoder) -> SampledText:
    """Sampled at temperature 1, from a fixed seed; NumericsError for logits that are not finite.

    Rows start at positions that are even in their logarithm, from 0 to the end of a session: the
    rotary embedding turns keys by their position, and how long sessions will be is not known.
    """
    config, device = decoder.config, decoder.device
    tokens = row_tokens(config, device, decoder.session_len)
    starts = row_starts(tokens, decoder.session_len).to(device)
    generator = torch.Generator(device).manual_seed(0)
    ids = torch.empty((_ROWS, tokens), dtype=torch.int64, device=device)
    ids[:, 0] = (
        torch.randint(config.vocab_size, (_ROWS,), generator=generator, device=device)
        if config.bos_token_id is None
        else config.bos_token_id
    )
    pages = pages_for(tokens)
    page_format = PageFormat.for_policy(config, 0, decoder.dtype)
    pool = PagePool(page_format, _ROWS * pages, device)
    for done in range(tokens - 1):
        spans = [
            SequenceSpan(
                start=row,
                length=1,
                context=done,
                pages=tuple(range(row * pages, (row + 1) * pages)),
            )
            for row in range(_ROWS)
        ]
        state = PagedAttention(pool, spans, config=config)
        hidden = decoder.hidden(ids[:, done], starts + done, state)
        shares = require_finite(decoder.logits(hidden), decoder).softmax(dim=-1)
        ids[:, done + 1] = torch.multinomial(shares, 1, generator=generator).squeeze(1)
    return SampledText(ids=ids, starts=starts)


def row_tokens(config: DecoderConfig, device: torch.device, session_len: int) -> int:
    """Tokens of a row: fewer where a CPU would take long, and never more than a session has."""
    tokens = _ROW_TOKENS
    if device.type == "cpu":
        weights = sum(torch.Size(shape).numel() for shape in canonical_shapes(config).values())
        tokens = min(tokens, max(_FEWEST_ROW_TOKENS, _CPU_WORK // (weights * _ROWS)))
    return min(tokens, session_len)


def row_starts(tokens: int, session_len: int) -> Tensor:
    """int64 [rows]: 0, then tokens · r^n up to the last start that a session has room for."""
    last = session_len - tokens
    if last <= tokens:
        return torch.linspace(0, last, _ROWS).long()
    exponents = torch.linspace(0.0, 1.0, _ROWS - 1, dtype=torch.float64)
    return torch.cat((torch.zeros(1), tokens * (last / tokens) ** exponents)).long()
