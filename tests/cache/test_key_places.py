"""Which keys are gathered by tokens and which in whole pages, and that these are the same keys."""

from __future__ import annotations

import pytest
import torch

from awqkit_runtime.cache import key_places as places
from awqkit_runtime.cache.key_places import PageKeys, TokenKeys, key_places
from awqkit_runtime.cache.page_format import PAGE_TOKENS, pages_for
from awqkit_runtime.cache.sequence_span import SequenceSpan

CPU = torch.device("cpu")


def make_spans(*totals: int) -> list[SequenceSpan]:
    """Of one new token each; every other page of a sequence is far from the one before."""
    return [
        SequenceSpan(
            start=row,
            length=1,
            context=total - 1,
            pages=tuple(1000 * (page % 2) + 100 * row + page for page in range(pages_for(total))),
        )
        for row, total in enumerate(totals)
    ]


@pytest.mark.parametrize(
    ("totals", "key_start", "in_pages"),
    [
        ([1500], [0], True),
        ([1023], [0], False),  # Too few.
        ([1024], [0], True),
        ([65] * 20, [0] * 20, False),  # 128 tokens for 65.
        ([90] * 20, [0] * 20, True),
        ([500, 570], [0, 0], True),
        ([1500, 1500], [5, 69], True),
        ([1500, 1500], [5, 70], False),  # At different places of their pages.
    ],
)
def test_many_tokens_of_whole_pages(
    totals: list[int], key_start: list[int], in_pages: bool
) -> None:
    found = key_places(make_spans(*totals), key_start, CPU)
    assert isinstance(found, PageKeys) == in_pages


@pytest.mark.parametrize(
    ("totals", "key_start"),
    [
        ([70], [0]),
        ([64, 65, 63], [0, 0, 0]),
        ([200, 320, 190], [0, 0, 0]),
        ([200, 320], [130, 258]),
        ([320, 200, 129], [66, 2, 2]),
    ],
)
def test_both_are_the_same_keys(
    monkeypatch: pytest.MonkeyPatch, totals: list[int], key_start: list[int]
) -> None:
    spans = make_spans(*totals)
    by_tokens = key_places(spans, key_start, CPU)
    assert isinstance(by_tokens, TokenKeys)
    monkeypatch.setattr(places, "_WHOLE_PAGES_FROM", 1)
    monkeypatch.setattr(places, "_WHOLE_PAGES_SHARE", 1000)
    by_pages = key_places(spans, key_start, CPU)
    assert isinstance(by_pages, PageKeys)
    slots = (by_pages.pages.unsqueeze(-1) * PAGE_TOKENS + torch.arange(PAGE_TOKENS)).flatten(1)
    slots = slots[:, by_pages.wanted].contiguous()
    if by_pages.hidden is not None:
        slots.view(-1)[by_pages.hidden] = -1
    expected = by_tokens.slots.view(len(spans), -1)
    for row, (total, start) in enumerate(zip(totals, key_start, strict=True)):
        keys = total - start
        assert torch.equal(slots[row, :keys], expected[row, :keys])
        assert (slots[row, keys:] == -1).all()
