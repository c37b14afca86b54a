"""Which new tokens of a step attend together on CUDA, and over which keys: plain numbers.

Rows that follow each other attend in one call where they can. Fresh prompts, whose keys the step
itself has made, and those whose keys must be gathered from the pages do not mix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from awqkit_runtime.cache.sequence_span import SequenceSpan

#: Keys that are gathered at once, which bounds the workspace.
BATCH_KEYS = 32768
#: A whole multiple of so many first tokens of a sequence attends apart from the rest: few shapes,
#: for kernels that are made for a shape.
SQUARE_TOKENS = 2048


@dataclass(frozen=True, kw_only=True)
class QueryPart:
    """New tokens first … stop − 1 of a span, each of which sees all positions up to its own."""

    span: SequenceSpan
    first: int
    stop: int
    #: Of the first key that any of them sees.
    first_key: int
    #: They are the first tokens of the sequence, and see no window.
    square: bool

    @property
    def num_queries(self) -> int:
        return self.stop - self.first

    @property
    def last_key(self) -> int:
        """Behind the last key that any of them sees."""
        return self.span.context + self.stop

    @property
    def num_keys(self) -> int:
        return self.last_key - self.first_key


@dataclass(frozen=True, kw_only=True)
class PromptCall:
    """Parts whose rows follow each other. Square ones are equally long."""

    parts: tuple[QueryPart, ...]
    #: Whether keys come from the pages; else they are rows of the step.
    gathered: bool

    @property
    def square(self) -> bool:
        return self.parts[0].square

    @property
    def query_rows(self) -> slice:
        first, last = self.parts[0], self.parts[-1]
        return slice(first.span.start + first.first, last.span.start + last.stop)

    @property
    def key_rows(self) -> slice:
        """Of a call whose keys are rows of the step."""
        first, last = self.parts[0], self.parts[-1]
        return slice(first.span.start, last.span.start + last.stop)

    @property
    def num_keys(self) -> int:
        return sum(part.num_keys for part in self.parts)


def plan_prompts(
    spans: Sequence[SequenceSpan], *, window: int | None, fresh_keys: bool, squares: bool
) -> tuple[PromptCall, ...]:
    """Calls that cover all new tokens of the spans, which are in the order of their rows.

    fresh_keys: prompts without a context find their keys among the rows of the step. squares: some
    kernel is for square parts alone.
    """
    calls: list[PromptCall] = []
    for part in (part for span in spans for part in _parts(span, window, squares)):
        gathered = part.span.context > 0 or not fresh_keys
        if calls and _joins(calls[-1], part, gathered):
            calls[-1] = PromptCall(parts=(*calls[-1].parts, part), gathered=gathered)
        else:
            calls.append(PromptCall(parts=(part,), gathered=gathered))
    return tuple(calls)


def key_pieces(call: PromptCall, window: int | None) -> tuple[range, ...]:
    """Ranges of keys that the one part of a call attends over one after the other.

    The last one holds all keys that some of the queries do not see. Windows are not split: what
    they leave of a long context is gathered at once.
    """
    (part,) = call.parts
    if window is not None or part.num_keys <= BATCH_KEYS:
        return (range(part.first_key, part.last_key),)
    seen_by_all = part.last_key - max(BATCH_KEYS, part.num_queries)
    starts = [*range(part.first_key, seen_by_all, BATCH_KEYS), seen_by_all]
    return tuple(range(a, b) for a, b in pairwise([*starts, part.last_key]))


def _parts(span: SequenceSpan, window: int | None, squares: bool) -> Iterator[QueryPart]:
    unseen = 0 if window is None else max(0, span.context - window + 1)
    square = 0
    if squares and span.context == 0 and (window is None or window >= span.length):
        square = min(span.length, BATCH_KEYS) // SQUARE_TOKENS * SQUARE_TOKENS
    if square:
        yield QueryPart(span=span, first=0, stop=square, first_key=0, square=True)
    if square < span.length:
        yield QueryPart(span=span, first=square, stop=span.length, first_key=unseen, square=False)


def _joins(call: PromptCall, part: QueryPart, gathered: bool) -> bool:
    last = call.parts[-1]
    follows = call.query_rows.stop == part.span.start + part.first
    alike = part.square == last.square and gathered == call.gathered
    if not (follows and alike):
        return False
    if part.square and part.stop != last.stop:
        return False
    return not gathered or call.num_keys + part.num_keys <= BATCH_KEYS
