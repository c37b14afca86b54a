"""Converted tokenizers against the sentencepiece library: the same ids and the same text back."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import AddedToken, Tokenizer

from awqkit.checkpoint.errors import CheckpointError
from awqkit.checkpoint.sentencepiece_model import PieceKind, read_sentencepiece
from awqkit.checkpoint.sentencepiece_tokenizer import build_fast_tokenizer
from tests.checkpoint.sentencepiece_models import (
    HARD_TEXTS,
    SHARED,
    as_proto,
    random_texts,
    train,
    training_lines,
)

zstandard = pytest.importorskip("zstandard")

INTERNLM2 = SHARED / "tokenizers/internlm2/tokenizer.model"
STORIES = SHARED / "models/stories260k/tokenizer.model"
SYMBOLS = ("<sep>", "……", "▁▁", "ab", "abc")

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared tokenizers")


def both(path: Path, model: bytes | None = None) -> tuple[Any, Tokenizer, list[str]]:
    """The sentencepiece processor, the converted tokenizer, and the pieces that text can give."""
    if model is not None:
        path.write_bytes(model)
    parsed = read_sentencepiece(path)
    pieces = parsed.texts(PieceKind.NORMAL, PieceKind.USER_DEFINED)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    return processor, build_fast_tokenizer(parsed), pieces


def require_equal(
    processor: Any, converted: Tokenizer, texts: Iterable[str], *, decoding: bool = True
) -> None:
    for text in texts:
        expected = processor.encode(text)
        found = converted.encode(text, add_special_tokens=False).ids
        assert found == expected, repr(text)
        if decoding:
            back = converted.decode(found, skip_special_tokens=False)
            assert back == processor.decode(expected), repr(text)


@pytest.mark.parametrize("symbols", [(), SYMBOLS], ids=["plain", "symbols"])
@pytest.mark.parametrize("byte_fallback", [True, False], ids=["bytes", "unknown"])
@pytest.mark.parametrize("trimmed", [True, False], ids=["trimmed", "as-is"])
@pytest.mark.parametrize("prefix", [True, False], ids=["prefix", "no-prefix"])
def test_bpe_equals_sentencepiece(
    tmp_path: Path, prefix: bool, trimmed: bool, byte_fallback: bool, symbols: tuple[str, ...]
) -> None:
    model = train(
        symbols=symbols,
        byte_fallback=byte_fallback,
        add_dummy_prefix=prefix,
        remove_extra_whitespaces=trimmed,
    )
    processor, converted, pieces = both(tmp_path / "tokenizer.model", model)
    # Unknown characters have no text to go back to. Where spaces are trimmed, marks in front that
    # were typed as such are trimmed piece by piece, which no decoder of the library can do.
    decoding = byte_fallback and not trimmed
    texts = [*HARD_TEXTS, *random_texts(pieces, seed=len(symbols), count=700)]
    require_equal(processor, converted, texts, decoding=decoding)
    require_equal(processor, converted, training_lines(seed=1, count=50))


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
@pytest.mark.parametrize("normalization", ["identity", "nmt_nfkc", "nfkc_cf"])
@pytest.mark.parametrize("symbols", [(), SYMBOLS], ids=["plain", "symbols"])
def test_written_text_equals_sentencepiece(
    tmp_path: Path, algorithm: str, normalization: str, symbols: tuple[str, ...]
) -> None:
    model = train(algorithm, normalization=normalization, symbols=symbols)
    processor, converted, _ = both(tmp_path / "tokenizer.model", model)
    lines = training_lines(seed=2, count=200)
    vietnamese = unicodedata.normalize("NFD", "Tiếng Việt: một quyển sách cũ")
    korean = unicodedata.normalize("NFD", "한국어 책")
    texts = ["\r\n".join(lines[:3]), "ｶﾞﾊﾟ ① ﬁ ™️ ½", "a<sep>b ……abc  x", vietnamese, korean]
    require_equal(processor, converted, [*lines, *texts, " ".join(lines)])


def test_unigram_symbols_weigh_what_they_weigh_there(tmp_path: Path) -> None:
    model = train("unigram", symbols=SYMBOLS, remove_extra_whitespaces=False)
    processor, converted, _ = both(tmp_path / "tokenizer.model", model)
    texts = ["▁▁", "   b", "ababcab", "a<sep>……b", "x  y   z", "<sep>", "<0x41>"]
    require_equal(processor, converted, texts)


def test_spaces_stay_spaces_where_they_are_not_escaped(tmp_path: Path) -> None:
    proto = as_proto(train(add_dummy_prefix=False, remove_extra_whitespaces=False))
    proto.normalizer_spec.escape_whitespaces = False
    path = tmp_path / "tokenizer.model"
    processor, converted, _ = both(path, proto.SerializeToString())
    require_equal(processor, converted, ["the river  ran", " ", "a\nb"])


def test_a_null_character_is_the_byte_piece_even_where_it_has_a_piece(tmp_path: Path) -> None:
    proto = as_proto(train(add_dummy_prefix=False, remove_extra_whitespaces=False))
    own = len(proto.pieces)
    proto.pieces.add(piece="\0", score=-500.0, type=PieceKind.NORMAL)
    path = tmp_path / "tokenizer.model"
    processor, converted, _ = both(path, proto.SerializeToString())
    for index in (own, processor.piece_to_id("<0x00>")):
        assert converted.decode([index]) == processor.decode([index]) == "\0"
    if not processor.is_unused(own):
        pytest.skip("this release of sentencepiece still uses the null character's own piece")
    require_equal(processor, converted, ["\0", "a\0\0b", "\0the"])


def test_control_pieces_and_added_tokens_are_split_off_first(tmp_path: Path) -> None:
    model = train(control_symbols=("<turn>",), add_dummy_prefix=False)
    path = tmp_path / "tokenizer.model"
    path.write_bytes(model)
    parsed = read_sentencepiece(path)
    reserved, behind = len(parsed.pieces) - 1, len(parsed.pieces)
    added = {
        reserved: AddedToken("<|name|>", special=True),
        behind: AddedToken("<|more|>", special=False),
    }
    converted = build_fast_tokenizer(parsed, added)
    turn = next(i for i, piece in enumerate(parsed.pieces) if piece.text == "<turn>")
    river = converted.encode("river").ids
    ids = converted.encode("<turn>river<|name|><|more|>river").ids
    assert ids == [turn, *river, reserved, behind, *river]
    assert converted.decode(ids) == "river<|more|>river"
    assert converted.decode(ids, skip_special_tokens=False) == "<turn>river<|name|><|more|>river"


def test_colliding_and_gapped_added_tokens_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(train())
    parsed = read_sentencepiece(path)
    size = len(parsed.pieces)
    with pytest.raises(CheckpointError, match="has 2 ids"):
        build_fast_tokenizer(parsed, {size: AddedToken(parsed.pieces[300].text)})
    with pytest.raises(CheckpointError, match=f"no token has id {size}"):
        build_fast_tokenizer(parsed, {size + 1: AddedToken("<|late|>")})


def test_conversion_survives_saving(tmp_path: Path) -> None:
    processor, converted, pieces = both(tmp_path / "tokenizer.model", train(symbols=SYMBOLS))
    converted.save(str(tmp_path / "tokenizer.json"))
    again = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    texts = [*HARD_TEXTS, *random_texts(pieces, seed=5, count=100)]
    require_equal(processor, again, texts, decoding=False)


@needs_shared
@pytest.mark.parametrize("path", [INTERNLM2, STORIES], ids=["internlm2", "stories260k"])
def test_published_models_equal_sentencepiece_on_real_text(path: Path) -> None:
    processor, converted, pieces = both(path)
    with zstandard.open(SHARED / "corpora/novels.jsonl.zst", "rt", encoding="utf-8") as lines:
        novels = [json.loads(line)["text"] for line, _ in zip(lines, range(20), strict=False)]
    assert sum(map(len, novels)) > 200_000
    chinese = (SHARED / "lmdeploy-tutorial.zh.md").read_text(encoding="utf-8")
    code = Path(sentencepiece.__file__).read_text(encoding="utf-8")[:100_000]
    stories = (SHARED / "corpora/tinystories.txt").read_text(encoding="utf-8")
    require_equal(processor, converted, [*novels, stories, chinese, *chinese.splitlines(), code])
    fuzz = random_texts(pieces, seed=7, count=5000)
    if not any(processor.is_unused(index) for index in range(len(processor))):
        # Releases of sentencepiece before 0.2.1 give the null character its own piece.
        fuzz = [text for text in fuzz if "\0" not in text]
    trimming = read_sentencepiece(path).remove_extra_whitespaces
    require_equal(processor, converted, [*HARD_TEXTS, *fuzz], decoding=not trimming)
