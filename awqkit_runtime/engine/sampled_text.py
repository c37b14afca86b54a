"""A short text that a model samples itself, to try things on before it is asked anything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from awqkit.checkpoint import DecoderConfig
from awqkit.checkpoint.canonical import canonical_shapes
from awqkit_runtime.cache.decode_attention import DecodeAttention
from awqkit_runtime.cache.page_format import PageFormat, pages_for
from awqkit_runtime.cache.paged_attention import PagedAttention, SequenceSpan
from awqkit_runtime.cache.pool import PagePool
from awqkit_runtime.config import EngineConfig
from awqkit_runtime.engine.cuda_graphs import CudaGraphs
from awqkit_runtime.engine.runner import require_finite
from awqkit_runtime.engine.step_memory import graph_pool_bytes, makes_graphs
from awqkit_runtime.kernels.paged_decode import prepare_decode
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
    read = _reading_rows(decoder, starts, tokens)
    for done in range(tokens - 1):
        logits = decoder.logits(read(ids[:, done], done))
        shares = require_finite(logits, decoder).softmax(dim=-1)
        ids[:, done + 1] = torch.multinomial(shares, 1, generator=generator).squeeze(1)
    return SampledText(ids=ids, starts=starts)


#: The next token of each row, int64 [rows], and how many each has → [rows, hidden].
ReadRows = Callable[[Tensor, int], Tensor]


def _reading_rows(decoder: Decoder, starts: Tensor, tokens: int) -> ReadRows:
    """Reads rows of so many tokens, one after the other, as graphs where the engine would."""
    config = decoder.config
    page_format = PageFormat.for_policy(config, 0, decoder.dtype)
    pages = torch.arange(_ROWS * pages_for(tokens)).view(_ROWS, -1)
    pool = PagePool(page_format, pages.numel(), decoder.device)
    if makes_graphs(config, decoder.placement, page_format, EngineConfig()):
        return _GraphedRows(decoder, pool, starts, pages)
    return partial(_read_rows, decoder, pool, starts, pages.tolist())


def _read_rows(
    decoder: Decoder,
    pool: PagePool,
    starts: Tensor,
    pages: list[list[int]],
    token_ids: Tensor,
    done: int,
) -> Tensor:
    spans = [
        SequenceSpan(start=row, length=1, context=done, pages=tuple(own))
        for row, own in enumerate(pages)
    ]
    state = PagedAttention(pool, spans, config=decoder.config)
    return decoder.hidden(token_ids, starts + done, state)


class _GraphedRows:
    """ReadRows whose second step is captured, and repeated from then on."""

    def __init__(self, decoder: Decoder, pool: PagePool, starts: Tensor, pages: Tensor) -> None:
        """starts: int64 [rows], the position of each row's first token. pages: [rows, width]."""
        self._decoder = decoder
        self._pool = pool
        self._starts = starts
        self._pages = pages.to(starts.device, torch.int32)
        self._token_ids = torch.zeros_like(starts)
        self._places = torch.zeros_like(starts)
        self._hidden: Tensor | None = None
        self._repeat: Callable[[], None] | None = None

    def __call__(self, token_ids: Tensor, done: int) -> Tensor:
        self._token_ids.copy_(token_ids)
        self._places.fill_(done)
        if self._hidden is None:
            # As any step, which loads and warms all kernels.
            self._hidden = self._compute().clone()
            return self._hidden
        if self._repeat is None:
            self._repeat = self._captured()
        self._repeat()
        return self._hidden

    def _captured(self) -> Callable[[], None]:
        decoder = self._decoder
        prepare_decode(self._pool.format, decoder.config.num_heads, decoder.device)
        pool_bytes = graph_pool_bytes(decoder.config, decoder.placement, _ROWS)
        try:
            graphs = CudaGraphs(decoder.device, pool_bytes=pool_bytes)
            return graphs.capture(self._write_hidden)
        except RuntimeError:
            # Slower, and the same; the engine tells of it when it makes its own.
            return self._write_hidden

    def _write_hidden(self) -> None:
        assert self._hidden is not None
        self._hidden.copy_(self._compute())

    def _compute(self) -> Tensor:
        state = DecodeAttention(self._pool, self._pages, self._places, config=self._decoder.config)
        return self._decoder.hidden(self._token_ids, self._starts + self._places, state)


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
