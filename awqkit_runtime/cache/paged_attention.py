"""Attention of a mixed batch over paged keys and values: prefill chunks and decodes together.

New keys and values go into the pages first and are read back from there, so a token sees the same
stored numbers however its sequence was split into steps, batched or shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from awqkit.checkpoint.decoder_config import DecoderConfig
from awqkit_runtime.cache.kernel_step import KernelStep, runs_in_kernels
from awqkit_runtime.cache.key_places import PageKeys, TokenKeys, key_places
from awqkit_runtime.cache.page_rows import PageRows, TokenRows
from awqkit_runtime.cache.pool import PagePool
from awqkit_runtime.cache.prompt_plan import BATCH_KEYS
from awqkit_runtime.cache.sequence_span import SequenceSpan
from awqkit_runtime.kernels.attention import AttentionBlock, attend, plan_attention
from awqkit_runtime.kernels.rotary import AttendProjected

__all__ = ["PagedAttention", "SequenceSpan"]

#: Sequences are attended together while padding adds at most this share of keys …
_PADDING_SHARE = 0.25
#: … or this number of them.
_PADDING_TOKENS = 64


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Spans with equally many new tokens, attended as one batch."""

    #: Of q, [batch · T].
    rows: Tensor
    keys: TokenKeys | PageKeys
    batch: int
    blocks: tuple[AttentionBlock, ...]


@dataclass(frozen=True, kw_only=True)
class _TorchPlan:
    """What torch's operations need of a step."""

    #: Of the new tokens.
    new: TokenRows
    #: By window.
    groups: dict[int | None, tuple[_Group, ...]]


class PagedAttention:
    """AttentionState of one step: stores the new keys and values, attends over the pages."""

    def __init__(
        self, pool: PagePool, spans: Sequence[SequenceSpan], *, config: DecoderConfig
    ) -> None:
        self._pool = pool
        self._config = config
        self._spans = sorted(spans, key=lambda span: span.start)
        if [span.start for span in self._spans] != _starts(self._spans):
            raise ValueError("the spans of a step must cover its rows without gaps or overlaps")
        self._kept_rows: tuple[_Group, TokenRows | PageRows] | None = None

    @property
    def attend_projected(self) -> AttendProjected | None:
        return None if self._in_kernels is None else self._in_kernels.attend

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [T, heads, head_dim], k and v [T, kv_heads, head_dim] after rotary → like q."""
        plan = self._in_torch
        self._pool.append_rows(layer, k, v, plan.new)
        q = self._pool.queries(layer, q)
        groups = plan.groups[self._config.window(layer)]
        if len(groups) == 1:
            return self._attend_group(layer, q, groups[0])
        out = torch.empty_like(q)
        for group in groups:
            rows = q.index_select(0, group.rows)
            out.index_copy_(0, group.rows, self._attend_group(layer, rows, group))
        return out

    @cached_property
    def _in_kernels(self) -> KernelStep | None:
        if not runs_in_kernels(self._pool, self._spans, self._config):
            return None
        return KernelStep(self._pool, self._spans, config=self._config)

    @cached_property
    def _in_torch(self) -> _TorchPlan:
        slots = [slot for span in self._spans for slot in span.slots(span.context, span.total)]
        batches = _batch_spans(self._spans)
        windows = {self._config.window(layer) for layer in range(self._config.num_layers)}
        device = self._pool.device
        return _TorchPlan(
            new=self._pool.rows(torch.tensor(slots, device=device)),
            groups={
                window: tuple(_plan_group(batch, window, device) for batch in batches)
                for window in windows
            },
        )

    def _attend_group(self, layer: int, q: Tensor, group: _Group) -> Tensor:
        k, v = self._pool.gather_rows(layer, self._rows_of(group))
        q, k, v = (x.unflatten(0, (group.batch, -1)) for x in (q, k, v))
        return attend(
            q,
            k,
            v,
            group.blocks,
            scale=self._config.softmax_scale,
            softcap=self._config.attention_softcap,
        ).flatten(0, 1)

    def _rows_of(self, group: _Group) -> TokenRows | PageRows:
        """Those of one group are kept: most steps have no other, and ask again in every layer."""
        if self._kept_rows is None or self._kept_rows[0] is not group:
            self._kept_rows = None  # Never those of two groups at once.
            self._kept_rows = group, self._find_rows(group.keys)
        return self._kept_rows[1]

    def _find_rows(self, keys: TokenKeys | PageKeys) -> TokenRows | PageRows:
        if isinstance(keys, PageKeys):
            return self._pool.page_rows(keys.pages, keys.wanted, keys.hidden)
        return self._pool.rows(keys.slots)


def _starts(spans: Sequence[SequenceSpan]) -> list[int]:
    """Where each span would start if they followed each other from row 0."""
    return [0, *accumulate(span.length for span in spans)][:-1]


def _batch_spans(spans: Sequence[SequenceSpan]) -> list[list[SequenceSpan]]:
    """Spans that are attended together: equally many new tokens, similarly many keys.

    Each batch keeps the order of the rows.
    """
    batches: list[list[SequenceSpan]] = []
    for span in sorted(spans, key=lambda span: (span.length, span.total)):
        if not batches or not _fits(batches[-1], span):
            batches.append([])
        batches[-1].append(span)
    return [sorted(batch, key=lambda span: span.start) for batch in batches]


def _fits(batch: Sequence[SequenceSpan], span: SequenceSpan) -> bool:
    """Whether a span, no shorter than those in the batch, may join it."""
    shortest = batch[0]
    padding = max(_PADDING_TOKENS, shortest.total * _PADDING_SHARE)
    return (
        span.length == shortest.length
        and span.total - shortest.total <= padding
        and span.total * (len(batch) + 1) <= BATCH_KEYS
    )


def _plan_group(spans: Sequence[SequenceSpan], window: int | None, device: torch.device) -> _Group:
    length = spans[0].length
    contexts = [span.context for span in spans]
    key_start = [0 if window is None else max(0, context - window + 1) for context in contexts]
    starts = torch.tensor([span.start for span in spans])
    return _Group(
        rows=(starts.unsqueeze(1) + torch.arange(length)).flatten().to(device),
        keys=key_places(spans, key_start, device),
        batch=len(spans),
        blocks=plan_attention(
            contexts, key_start, num_queries=length, window=window, device=device
        ),
    )
