"""The new tokens of one sequence in a step, and where its pages are."""

from __future__ import annotations

from dataclasses import dataclass

from awqkit_runtime.cache.page_format import PAGE_TOKENS, pages_for


@dataclass(frozen=True, kw_only=True)
class SequenceSpan:
    """The new tokens of one sequence in a step."""

    #: Row of the first new token in the step's batch of tokens.
    start: int
    #: New tokens.
    length: int
    #: Tokens that the pages hold already.
    context: int
    #: Page ids in order; they have room for context + length tokens.
    pages: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.length < 1 or self.context < 0 or self.start < 0:
            raise ValueError(f"a span needs new tokens and sane counts: {self}")
        if pages_for(self.total) > len(self.pages):
            raise ValueError(
                f"{len(self.pages)} pages cannot hold {self.total} tokens of {PAGE_TOKENS} each"
            )

    @property
    def total(self) -> int:
        return self.context + self.length

    @property
    def stop(self) -> int:
        """Row behind its last new token."""
        return self.start + self.length

    def slots(self, start: int, stop: int) -> list[int]:
        """Slots of the tokens at positions start … stop − 1."""
        return [
            self.pages[position // PAGE_TOKENS] * PAGE_TOKENS + position % PAGE_TOKENS
            for position in range(start, stop)
        ]
