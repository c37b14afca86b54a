"""Read the novels, clean their text, and split it into training and held-out pieces.

The corpus is JSON lines, compressed with zstd, one piece of a novel in each line's "text".
"""

import io
import json
import random
import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow

# Letters that were stored under the wrong code page; found by reading the words they stand in.
_MISREAD_LETTERS = {"Ă ": "é", "Ă": "é", "ť": "é", "Ű": "ô", "Ų": "ö", "š": "ä", "Ž": "ë", "ů": "ò"}
_LONGEST_HELD_OUT_PIECE = 40_000
_SENTENCE_END = (".", "!", "?", '"', "'", ":")


@dataclass(frozen=True, kw_only=True)
class NovelSplit:
    """Cleaned pieces of novels; a piece is a list of paragraphs without line breaks."""

    training: list[list[str]]
    held_out: list[list[str]]


def read_novels(corpus: Path, *, held_out_share: float, seed: int) -> NovelSplit:
    """Clean every piece and hold out whole pieces.

    Held-out pieces come from novels whose other pieces are trained on, so they are unseen text
    but not unseen books. A piece that is nearly a whole novel is never held out.
    """
    pieces = [clean_paragraphs(text) for text in _stored_texts(corpus)]
    sizes = [sum(map(len, piece)) for piece in pieces]
    candidates = [i for i, size in enumerate(sizes) if 0 < size <= _LONGEST_HELD_OUT_PIECE]
    random.Random(seed).shuffle(candidates)
    wanted, chosen = held_out_share * sum(sizes), set()
    for index in candidates:
        if wanted <= 0:
            break
        chosen.add(index)
        wanted -= sizes[index]
    return NovelSplit(
        training=[piece for i, piece in enumerate(pieces) if i not in chosen and piece],
        held_out=[pieces[i] for i in sorted(chosen)],
    )


def clean_paragraphs(text: str) -> list[str]:
    """Split text into paragraphs, undo its hard line wrapping and repair its characters."""
    text = text.replace("\ufeff", "").replace("\t", " ").replace("_", "")
    for wrong, right in _MISREAD_LETTERS.items():
        text = text.replace(wrong, right)
    blocks = re.split(r"\n\s*\n", text)
    if 50 * len(blocks) < text.count("\n"):
        blocks = _blocks_without_blank_lines(text)
    cleaned = (_clean_block(block) for block in blocks)
    return [block for block in cleaned if re.search(r"[A-Za-z]", block)]


def _stored_texts(corpus: Path) -> Iterator[str]:
    with pyarrow.input_stream(corpus, compression="zstd") as stream:
        for line in io.TextIOWrapper(stream, encoding="utf-8"):
            yield json.loads(line)["text"]


def _clean_block(block: str) -> str:
    lines = [re.sub(r"\s+", " ", line).strip() for line in block.strip().split("\n")]
    is_verse = len(lines) > 1 and max(map(len, lines[:-1])) < 50
    joined = ("\n" if is_verse else " ").join(line for line in lines if line)
    # Dashes are stored as " - " or "--"; a typographic dash reads the same in every novel.
    return re.sub(r" ?--+ ?| - ", "—", joined).replace("*", "").strip()


def _blocks_without_blank_lines(text: str) -> list[str]:
    """Guess paragraphs in a text that has line breaks but no blank lines.

    A line ends its paragraph where it is clearly shorter than the text's usual line and closes a
    sentence. Texts that keep a whole paragraph on each line come out right as well.
    """
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    usual_width = statistics.quantiles(map(len, lines), n=10)[7]
    blocks, current = [], []
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        current.append(line)
        ends_short = len(line) < 0.85 * usual_width and line.endswith(_SENTENCE_END)
        speech_follows = following.startswith('"') and line.endswith(_SENTENCE_END)
        if ends_short or speech_follows or len(line) > 120:
            blocks.append("\n".join(current))
            current = []
    return [*blocks, "\n".join(current)]
