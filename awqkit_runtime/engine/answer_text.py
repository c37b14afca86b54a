"""The text of one answer, token by token, up to its stop text."""

from __future__ import annotations

from collections.abc import Sequence

from awqkit_runtime.engine.detokenizer import IncrementalDetokenizer, StopTexts, TextDecoder
from awqkit_runtime.engine.sampling_params import SamplingParams


class AnswerText:
    """push() and finish() give pieces that together are `text`."""

    def __init__(
        self, tokenizer: TextDecoder, params: SamplingParams, *, prompt: Sequence[int] = ()
    ) -> None:
        self._detokenizer = IncrementalDetokenizer(
            tokenizer, after=prompt, skip_special_tokens=params.skip_special_tokens
        )
        self._stops = StopTexts(params.stop_texts)
        self._min_tokens = params.min_tokens
        self._num_tokens = 0
        self._pieces: list[str] = []
        #: A stop text was found; `text` ends before it.
        self.stopped = False

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def push(self, token_id: int) -> str:
        """The text that this token makes sure."""
        self._num_tokens += 1
        piece = self._detokenizer.push(token_id)
        if self._num_tokens >= self._min_tokens:
            piece, self.stopped = self._stops.push(piece)
        self._pieces.append(piece)
        return piece

    def finish(self) -> str:
        """The rest, when no more tokens come: what was held back, unless a stop text ended it."""
        if self.stopped:
            return ""
        piece, self.stopped = self._stops.push(self._detokenizer.flush())
        if not self.stopped:
            piece += self._stops.flush()
        self._pieces.append(piece)
        return piece
