"""A mixed step over pages on CUDA: decodes in one launch, prompts in as few calls as they allow."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from awqkit.checkpoint.decoder_config import DecoderConfig
from awqkit_runtime.cache.int_arrays import IntArrays, send
from awqkit_runtime.cache.page_format import PAGE_TOKENS
from awqkit_runtime.cache.page_kernels import (
    append_projected,
    appends_in_kernels,
    decode,
    decodes_in_kernels,
    rows_by_window,
)
from awqkit_runtime.cache.pool import PagePool
from awqkit_runtime.cache.prompt_attention import PreparedCall, StepTensors, prepare_call
from awqkit_runtime.cache.prompt_plan import plan_prompts
from awqkit_runtime.cache.sequence_span import SequenceSpan
from awqkit_runtime.kernels.flash_attention import has_square_kernels
from awqkit_runtime.kernels.paged_decode import DecodeRows
from awqkit_runtime.kernels.rotary import HeadNorms


def runs_in_kernels(pool: PagePool, spans: Sequence[SequenceSpan], config: DecoderConfig) -> bool:
    """Whether KernelStep takes such a step. Prompts with soft caps are left to torch."""
    if not appends_in_kernels(pool):
        return False
    if config.attention_softcap is None:
        return True
    return all(span.length == 1 for span in spans) and decodes_in_kernels(pool, config)


class KernelStep:
    """Stores and attends as PagedAttention does, from what the projections gave."""

    def __init__(
        self, pool: PagePool, spans: Sequence[SequenceSpan], *, config: DecoderConfig
    ) -> None:
        """spans: in the order of their rows, which they cover."""
        self._pool = pool
        self._config = config
        arrays = IntArrays()
        by_kernel = decodes_in_kernels(pool, config)
        decodes = [span for span in spans if by_kernel and span.length == 1]
        prompts = [span for span in spans if not by_kernel or span.length > 1]
        self._decodes = _Decodes(decodes, arrays) if decodes else None
        self._calls = {
            window: self._prepare_calls(prompts, window, arrays)
            for window in {config.window(layer) for layer in range(config.num_layers)}
        }
        self._numbers = arrays.send(pool.device)
        self._decode_rows = self._share_decodes() if decodes else {}
        # Last: attention reads what is above ahead of its predecessor's end, and only a launch that
        # overlaps with nothing, as this copy, makes that sure to be there.
        self._slots = send(torch.cat([_new_slots(span) for span in spans]), pool.device)

    def attend(
        self, layer: int, qkv: Tensor, cos: Tensor, sin: Tensor, norms: HeadNorms | None
    ) -> Tensor:
        """kernels.rotary.AttendProjected."""
        q, k, v = append_projected(
            *(self._pool, layer, qkv, cos, sin, norms, self._slots), config=self._config
        )
        pages = self._pool.layer(layer)
        step = StepTensors(q=q, k=k, v=v, pages=pages, numbers=self._numbers)
        calls = self._calls[self._config.window(layer)]
        if self._decodes is None and len(calls) == 1:
            return calls[0].attend(step)
        if not calls:
            return self._decode(layer, q)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        for call in calls:
            out[call.call.query_rows] = call.attend(step)
        if self._decodes is not None:
            rows = self._decodes.rows(self._numbers)
            out[rows] = self._decode(layer, q[rows])
        return out

    def _decode(self, layer: int, q: Tensor) -> Tensor:
        """q: of the rows with one new token, [decodes, heads, head_dim]."""
        return decode(*(self._pool, layer, q, self._decode_rows), config=self._config)

    def _share_decodes(self) -> dict[int | None, DecodeRows]:
        assert self._decodes is not None
        page_table = self._decodes.page_table(self._numbers)
        lengths = self._decodes.lengths(self._numbers)
        return rows_by_window(self._pool, page_table, lengths, config=self._config)

    def _prepare_calls(
        self, prompts: Sequence[SequenceSpan], window: int | None, arrays: IntArrays
    ) -> list[PreparedCall]:
        calls = plan_prompts(
            prompts,
            window=window,
            fresh_keys=not self._pool.format.quantized,
            squares=has_square_kernels(self._pool.device),
        )
        scale = self._config.softmax_scale
        return [prepare_call(call, arrays, window=window, scale=scale) for call in calls]


class _Decodes:
    """The spans with one new token, which attend in one launch."""

    def __init__(self, spans: Sequence[SequenceSpan], arrays: IntArrays) -> None:
        starts = [span.start for span in spans]
        follow_each_other = starts == list(range(starts[0], starts[0] + len(starts)))
        self._consecutive = slice(starts[0], starts[-1] + 1) if follow_each_other else None
        self._rows = arrays.add(starts)
        self._lengths = arrays.add([span.total for span in spans])
        self._width = max(len(span.pages) for span in spans)
        padded = (span.pages + (0,) * (self._width - len(span.pages)) for span in spans)
        self._page_table = arrays.add([page for pages in padded for page in pages])

    def rows(self, numbers: Tensor) -> slice | Tensor:
        """Index of their rows in the step; a slice, and nothing is copied, where they allow it."""
        return numbers[self._rows] if self._consecutive is None else self._consecutive

    def lengths(self, numbers: Tensor) -> Tensor:
        return numbers[self._lengths]

    def page_table(self, numbers: Tensor) -> Tensor:
        return numbers[self._page_table].view(-1, self._width)


def _new_slots(span: SequenceSpan) -> Tensor:
    """Of a span's new tokens, int64 [length]."""
    positions = torch.arange(span.context, span.total)
    first = span.context // PAGE_TOKENS
    pages = torch.tensor(span.pages[first:])
    return pages[positions // PAGE_TOKENS - first] * PAGE_TOKENS + positions % PAGE_TOKENS
