"""Where the keys of sequences that attend together lie: token by token, or in whole pages.

Many whole pages are moved in a fifth less time; few are not, and where many of their tokens are not
wanted, those are read for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from awqkit_runtime.cache.page_format import PAGE_TOKENS, pages_for
from awqkit_runtime.cache.sequence_span import SequenceSpan

#: Whole pages are read where so many tokens are wanted in all …
_WHOLE_PAGES_FROM = 1024
#: … and the pages hold no more than so many times as many.
_WHOLE_PAGES_SHARE = 1.5


@dataclass(frozen=True, kw_only=True)
class TokenKeys:
    """Keys token by token."""

    #: int64 [batch · S]; shorter sequences repeat a slot of theirs, which no query sees.
    slots: Tensor


@dataclass(frozen=True, kw_only=True)
class PageKeys:
    """Keys in whole pages."""

    #: int64 [batch, P]; shorter sequences repeat a page of theirs.
    pages: Tensor
    #: Of the P · PAGE_TOKENS tokens of each sequence: its S keys.
    wanted: slice
    #: Those of the batch · S keys that a shorter sequence does not have: int64, or None. The pages
    #: may hold anything there.
    hidden: Tensor | None


def key_places(
    spans: Sequence[SequenceSpan], key_start: Sequence[int], device: torch.device
) -> TokenKeys | PageKeys:
    """Of each span's keys from key_start on. S is the number that the longest one has."""
    counts = [span.total - start for span, start in zip(spans, key_start, strict=True)]
    first = [start // PAGE_TOKENS for start in key_start]
    width = max(pages_for(span.total) - page for span, page in zip(spans, first, strict=True))
    if not _are_worth_whole_pages(key_start, counts, width):
        return TokenKeys(slots=_slots(spans, key_start, max(counts)).to(device))
    wanted = slice(key_start[0] % PAGE_TOKENS, key_start[0] % PAGE_TOKENS + max(counts))
    hidden = _hidden(counts)
    return PageKeys(
        pages=_pages(spans, first, width).to(device),
        wanted=wanted,
        hidden=None if hidden is None else hidden.to(device),
    )


def _are_worth_whole_pages(key_start: Sequence[int], counts: Sequence[int], width: int) -> bool:
    """counts: of each sequence's keys; width: pages of the longest one."""
    if len({start % PAGE_TOKENS for start in key_start}) > 1:
        return False  # Keys would begin at different places of their pages.
    wanted = max(counts)
    return (
        wanted * len(counts) >= _WHOLE_PAGES_FROM
        and width * PAGE_TOKENS <= wanted * _WHOLE_PAGES_SHARE
    )


def _slots(spans: Sequence[SequenceSpan], key_start: Sequence[int], most: int) -> Tensor:
    """int64 [batch · most]."""
    totals = torch.tensor([span.total for span in spans]).unsqueeze(1)
    positions = torch.tensor(key_start).unsqueeze(1) + torch.arange(most)
    positions = torch.minimum(positions, totals - 1)
    pages = _page_table(spans).gather(1, positions // PAGE_TOKENS)
    return (pages * PAGE_TOKENS + positions % PAGE_TOKENS).flatten()


def _pages(spans: Sequence[SequenceSpan], first: Sequence[int], width: int) -> Tensor:
    """int64 [batch, width], from each sequence's first one on."""
    last = torch.tensor([pages_for(span.total) - 1 for span in spans]).unsqueeze(1)
    ordinals = torch.tensor(first).unsqueeze(1) + torch.arange(width)
    return _page_table(spans).gather(1, torch.minimum(ordinals, last))


def _hidden(counts: Sequence[int]) -> Tensor | None:
    if min(counts) == max(counts):
        return None
    behind = torch.arange(max(counts)) >= torch.tensor(counts).unsqueeze(1)
    return behind.flatten().nonzero().flatten()


def _page_table(spans: Sequence[SequenceSpan]) -> Tensor:
    """int64 [batch, pages]; entries behind a sequence's own are 0."""
    width = max(len(span.pages) for span in spans)
    return torch.tensor([span.pages + (0,) * (width - len(span.pages)) for span in spans])
