"""Cut conversations out of novels: paragraphs of speech in which two people take turns."""

import re
from collections.abc import Iterable, Iterator

Turns = list[str]

_LONGEST_TURN = 320
_LONGEST_NARRATION = 90
_MOST_TURNS = 8
_ALTERNATION_BREAKERS = re.compile(
    r"[\[\]()<>\n:*]|\b(?:thee|thou|thy|ye|hath|'ee|wi'|th'|o'|tha)\b|[A-Z]{4,}|—[a-z]*—"
)
_OPENING_WORDS_OF_SPEECH = re.compile(r"[A-Z]")


def cut_dialogues(paragraphs: Iterable[str]) -> Iterator[Turns]:
    """Yield conversations of an even number of turns, the first one the user's.

    Every run of speech is also read with the roles exchanged (starting one turn later), since
    either speaker may play the assistant.
    """
    for run in _runs_of_speech(paragraphs):
        for first in (0, 1):
            turns = run[first:]
            for start in range(0, len(turns) - 1, _MOST_TURNS):
                part = turns[start : start + _MOST_TURNS]
                part = part[: len(part) // 2 * 2]
                if part:
                    yield part


def speech_in(paragraph: str) -> str | None:
    """The words that a paragraph's speaker says, without narration, or None if unusable.

    `"There is," said Alice; "I have a fancy."` becomes `There is. I have a fancy.`
    """
    text = paragraph.strip()
    if text.startswith("'"):
        # Single-quoted novels: only a paragraph that is one speech is safe from apostrophes.
        spoken = [text[1:-1]] if re.fullmatch(r"'[^'\"]+(?:'[a-z]+[^'\"]*)*[.,!?]'", text) else []
        narrated = []
    elif text.startswith('"') and text.count('"') % 2 == 0:
        parts = text.split('"')
        spoken, narrated = parts[1::2], [part.strip() for part in parts[2::2] if part.strip()]
    else:
        return None
    if not spoken or any(len(part) > _LONGEST_NARRATION for part in narrated):
        return None
    return _well_formed(_join_segments(spoken))


def _runs_of_speech(paragraphs: Iterable[str]) -> Iterator[Turns]:
    run: Turns = []
    for paragraph in paragraphs:
        speech = speech_in(paragraph)
        if speech is not None:
            run.append(speech)
            continue
        if len(run) > 1:
            yield run
        run = []
    if len(run) > 1:
        yield run


def _join_segments(segments: list[str]) -> str:
    joined = ""
    for segment in map(str.strip, segments):
        starts_sentence = re.match(r"(?!I\b)[A-Z]", segment)
        if joined.endswith(",") and starts_sentence:
            joined = joined[:-1] + "."
        joined = f"{joined} {segment}" if joined else segment
    return joined[:-1] + "." if joined.endswith(",") else joined


def _well_formed(speech: str) -> str | None:
    speech = re.sub(r"\s+", " ", speech).strip()
    if not 2 <= len(speech) <= _LONGEST_TURN or not speech.endswith((".", "!", "?")):
        return None
    if not _OPENING_WORDS_OF_SPEECH.match(speech) or _ALTERNATION_BREAKERS.search(speech):
        return None
    return speech
