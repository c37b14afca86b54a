"""From tokens to text, piece by piece, without ever showing half a character."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

#: What decoders write for bytes that are no character (yet).
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
#: A character is at most four tokens of one byte each; what is still broken after this many is
#: broken for good, and holding it would make every later step decode a longer window.
_MAX_HELD = 32
#: Tokens before a text that show how it is joined to them.
_CONTEXT = 8


class TextDecoder(Protocol):
    """The part of a tokenizer that is needed here."""

    def decode(
        self,
        token_ids: list[int],
        /,
        *,
        skip_special_tokens: bool,
    ) -> str:
        """The tokens' text."""


class IncrementalDetokenizer:
    """Text of a growing list of tokens: push() and flush() give it in pieces.

    The pieces together are the text of all tokens. Each push decodes a short window: the tokens
    behind the last piece, and those of the piece before as context, since a decoder may treat the
    first token of a text differently (SentencePiece drops its leading space).
    """

    def __init__(
        self,
        tokenizer: TextDecoder,
        *,
        after: Sequence[int] = (),
        skip_special_tokens: bool = True,
    ) -> None:
        """after: the tokens that the text continues; the space between the two is kept."""
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._window: list[int] = list(after[-_CONTEXT:])
        #: Text of the window that was given out already.
        self._shown = self._decode(self._window)
        if self._shown.endswith(REPLACEMENT):
            self._window, self._shown = [], ""
        #: Tokens of the window whose text is complete and was given out.
        self._settled = len(self._window)

    def push(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is unfinished."""
        self._window.append(token_id)
        text = self._decode(self._window)
        if text.endswith(REPLACEMENT) and len(self._window) - self._settled < _MAX_HELD:
            return self._show(text.rstrip(REPLACEMENT))
        piece = self._rest(text)
        self._settle(text)
        return piece

    def flush(self) -> str:
        """What is left at the end, broken characters included."""
        if self._settled == len(self._window):
            return ""
        text = self._decode(self._window)
        piece = self._rest(text)
        self._settle(text)
        return piece

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=self._skip_special_tokens)

    def _show(self, sure: str) -> str:
        """Gives out the part of the window's text that later tokens cannot change."""
        if not sure.startswith(self._shown):
            return ""
        piece = sure[len(self._shown) :]
        self._shown = sure
        return piece

    def _rest(self, text: str) -> str:
        """The window's text behind what was shown.

        Decoders with byte fallback replace a whole run of bytes when its end is broken, also
        characters that were shown before; then the unsettled tokens are decoded by themselves.
        """
        if text.startswith(self._shown):
            return text[len(self._shown) :]
        return self._decode(self._window[self._settled :])

    def _settle(self, text: str) -> None:
        """Keeps only the latest piece's tokens as context, if they show any text by themselves."""
        piece = self._window[self._settled :]
        context = self._decode(piece)
        if context:
            self._window, self._shown = piece, context
        else:
            self._shown = text
        self._settled = len(self._window)


class StopTexts:
    """Cuts a text that comes in pieces before the first of some stop texts.

    What could be the beginning of a stop text is held back until it is clear.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        #: Characters that the beginning of a stop text begins and ends with.
        self._first = {stop[0] for stop in self._stops}
        self._last = {character for stop in self._stops for character in stop[:-1]}
        self._held = ""

    def push(self, piece: str) -> tuple[str, bool]:
        """(text that is clear, whether a stop text was found; the text then ends before it)."""
        if not self._stops:
            return piece, False
        text = self._held + piece
        for stop in self._stops:
            if stop in text:
                self._held = ""
                return text[: min(at for at in map(text.find, self._stops) if at >= 0)], True
        keep = self._possible_start(text)
        self._held = text[keep:]
        return text[:keep], False

    def flush(self) -> str:
        """What was held back, when the text ends without a stop text."""
        held, self._held = self._held, ""
        return held

    def _possible_start(self, text: str) -> int:
        """Where the longest end of `text` starts that begins a stop text; its length if none."""
        if not text or text[-1] not in self._last:
            return len(text)
        for start in range(max(len(text) - self._longest + 1, 0), len(text)):
            if text[start] in self._first and self._begins_stop(text[start:]):
                return start
        return len(text)

    def _begins_stop(self, text: str) -> bool:
        return any(stop.startswith(text) for stop in self._stops)
