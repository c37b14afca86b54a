"""SentencePiece's normalization as steps of the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from awqkit.checkpoint.errors import CheckpointError
from awqkit.checkpoint.sentencepiece_model import SPACE_MARK, SentencePieceModel

if TYPE_CHECKING:
    from tokenizers.normalizers import Normalizer

#: Private characters that stand for user-defined symbols while the rest is normalized.
_FIRST_STAND_IN = 0x10F000


def build_normalizer(model: SentencePieceModel, symbols: Sequence[str]) -> Normalizer:
    """Build what happens to a text before it is split into pieces.

    symbols: the user-defined symbols, the longest first, which SentencePiece never changes.
    Raises CheckpointError where the model's table of replacements is damaged.
    """
    from tokenizers import Regex, normalizers

    steps = _sparing(symbols, list(_charsmap_steps(model.charsmap)))
    if model.remove_extra_whitespaces:
        # Only the end also loses the mark itself, which is what a trailing space has become.
        steps += [
            normalizers.Replace(Regex(r"\A +"), ""),
            normalizers.Replace(Regex(rf"[ {SPACE_MARK}]+\z"), ""),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    space = SPACE_MARK if model.escape_whitespaces else " "
    if model.add_dummy_prefix:
        steps.append(normalizers.Prepend(space))
    if model.escape_whitespaces:
        steps.append(normalizers.Replace(" ", SPACE_MARK))
    return normalizers.Sequence(steps)


def _charsmap_steps(charsmap: bytes) -> Iterator[Normalizer]:
    """SentencePiece's table of replacements.

    The library replaces at most once in what Unicode counts as one character: of a base with
    several marks it would keep only the first step, and CR LF would become one space. So what the
    table composes is composed before, and CR LF is spelled out.
    """
    from tokenizers import normalizers

    if not charsmap:
        return
    try:
        table = normalizers.Precompiled(charsmap)
    # The library raises no narrower class than this.
    except Exception as error:
        raise CheckpointError(
            "tokenizer.model has a damaged table of replacements (precompiled_charsmap). "
            "Fetch the file again from where it came."
        ) from error
    composes = table.normalize_str("e\u0301") == "\u00e9"
    if composes:
        yield normalizers.NFC()
    yield normalizers.Replace("\r\n", table.normalize_str("\r") + table.normalize_str("\n"))
    yield table
    if composes:
        # Half-width letters get their marks in a second step.
        yield normalizers.NFC()


def _sparing(symbols: Sequence[str], steps: list[Normalizer]) -> list[Normalizer]:
    """The same steps, which leave user-defined symbols as they are, as SentencePiece does."""
    from tokenizers import normalizers

    changing = normalizers.Sequence(steps)
    changed = [symbol for symbol in symbols if changing.normalize_str(symbol) != symbol]
    stand_ins = [chr(_FIRST_STAND_IN + number) for number in range(len(changed))]
    pairs = list(zip(changed, stand_ins, strict=True))
    hide = [normalizers.Replace(symbol, stand_in) for symbol, stand_in in pairs]
    show = [normalizers.Replace(stand_in, symbol) for symbol, stand_in in pairs]
    return [*hide, *steps, *show]
