"""Documents of a workable size, in a seeded random order."""

import random
from collections.abc import Iterable, Iterator

# A text file is cut at the first blank line after this many characters, or at any line end after
# twice as many. Small enough that short files still give several documents to draw from.
PASSAGE_CHARACTERS = 4096
# Longer documents are cut, so that no more of a book than needed goes through the tokenizer.
LONGEST_DOCUMENT = 16384
# How some plain-text corpora part their documents, on a line of its own.
SEPARATOR_LINE = "<|endoftext|>"


def passages(lines: Iterable[str]) -> Iterator[str]:
    """Running text, given line by line, as passages of whole lines."""
    passage: list[str] = []
    length = 0
    for line in lines:
        separator = line.strip() == SEPARATOR_LINE
        if not separator:
            passage.append(line)
            length += len(line) + 1
        enough = PASSAGE_CHARACTERS if not line.strip() else 2 * PASSAGE_CHARACTERS
        if separator or length >= enough:
            yield "\n".join(passage)
            passage, length = [], 0
    yield "\n".join(passage)


def cut_long(documents: Iterable[str], *, limit: int = LONGEST_DOCUMENT) -> Iterator[str]:
    """The non-blank documents, those above `limit` characters in pieces that end at a line or word.

    No character is lost: the pieces of a document join to the document.
    """
    for document in documents:
        start = 0
        while len(document) - start > limit:
            end = _cut_before(document, start, start + limit)
            yield document[start:end]
            start = end
        if document[start:].strip():
            yield document[start:]


def _cut_before(text: str, start: int, end: int) -> int:
    """Where to cut text[start:end]: after the last line end or space of its second half."""
    middle = (start + end) // 2
    for boundary in ("\n", " "):
        found = text.rfind(boundary, middle, end)
        if found >= 0:
            return found + 1
    return end


def shuffled(
    documents: Iterable[str], *, seed: int, max_documents: int, max_characters: int
) -> Iterator[str]:
    """The documents in a random order that depends on nothing but the seed.

    At most `max_documents` documents or `max_characters` characters wait in a buffer; a source
    that fits is shuffled wholly, of a larger one no more is read than the buffer and what was
    taken.
    """
    order = random.Random(seed)
    waiting: list[str] = []
    characters = 0
    for document in documents:
        waiting.append(document)
        characters += len(document)
        while len(waiting) > 1 and (len(waiting) > max_documents or characters > max_characters):
            chosen = order.randrange(len(waiting))
            waiting[chosen], waiting[-1] = waiting[-1], waiting[chosen]
            characters -= len(waiting[-1])
            yield waiting.pop()
    order.shuffle(waiting)
    yield from waiting
