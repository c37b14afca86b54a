"""Turn narrative paragraphs of the novels into requests and answers."""

import random
import re
from collections.abc import Iterator

Turns = list[str]

_SHORTEST, _LONGEST = 220, 800
_REQUESTS = (
    "Tell me a story about {subject}.",
    "Tell me about {subject}.",
    "Tell me something about {subject}.",
    "Write a few lines about {subject}.",
    "Write a paragraph about {subject}.",
    "Write about {subject}.",
    "I should like to hear about {subject}.",
    "Can you tell me a story about {subject}?",
)
_CONTINUATION_REQUESTS = (
    "Continue this story: {opening}",
    "Go on from here: {opening}",
    "What comes next? {opening}",
    "Please continue: {opening}",
)
_STORY_REQUESTS = (
    "Tell me a story.",
    "Tell me another story.",
    "Can you tell me a story?",
    "Please tell me a story!",
    "Write me a story.",
    "Write the beginning of a novel.",
    "Begin a tale for me.",
    "I should like to hear a story.",
)
_STORY_OPENING = re.compile(
    r"(It was|There (?:was|were|is|are)|In the|On the|On a|In a|Upon|At the|Early|Late|Towards|"
    r"About|Many|Once|One (?:day|evening|morning|night)|"
    r"The (?:house|town|village|old|morning|evening|night|day|sun|next|first|road|castle|room))\b"
)


def cut_passages(
    paragraphs: list[str], *, subjects: list[str], rng: random.Random
) -> Iterator[Turns]:
    """Yield two-turn conversations: a request, and narration of the novel as its answer.

    A subject ("the sea", "London") is looked for by its last word.
    """
    for paragraph in paragraphs:
        if not _is_narration(paragraph):
            continue
        if _STORY_OPENING.match(paragraph):
            yield [rng.choice(_STORY_REQUESTS), paragraph]
        elif subject := _main_subject(paragraph, subjects):
            yield [rng.choice(_REQUESTS).format(subject=subject), paragraph]
        elif continuation := _split_after_first_sentence(paragraph):
            opening, rest = continuation
            yield [rng.choice(_CONTINUATION_REQUESTS).format(opening=opening), rest]


def _is_narration(paragraph: str) -> bool:
    return (
        _SHORTEST <= len(paragraph) <= _LONGEST
        and paragraph[0].isupper()
        and paragraph.endswith((".", "!", "?"))
        and not re.search(r"[\"\n:\[\]()]|(?:^|\s)'|[A-Z]{4,}", paragraph)
    )


def _main_subject(paragraph: str, subjects: list[str]) -> str | None:
    """The subject that the paragraph names most often, if it names it twice or early."""
    words = re.findall(r"[A-Za-z]+", paragraph)
    counts = {subject: words.count(subject.split()[-1]) for subject in subjects}
    subject = max(counts, key=lambda name: counts[name])
    is_early = subject.split()[-1] in words[:25]
    return subject if counts[subject] > 1 or is_early else None


def _split_after_first_sentence(paragraph: str) -> tuple[str, str] | None:
    sentences = re.split(r"(?<=[a-z][.!?]) (?=[A-Z])", paragraph)
    if len(sentences) < 3 or not 30 <= len(sentences[0]) <= 200:
        return None
    return sentences[0], " ".join(sentences[1:])
