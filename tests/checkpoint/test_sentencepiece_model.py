"""Damaged and inexpressible tokenizer.model files."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from awqkit.checkpoint.errors import CheckpointError, UnsupportedModelError
from awqkit.checkpoint.sentencepiece_model import PieceKind, read_sentencepiece
from tests.checkpoint.sentencepiece_models import as_proto, train


def test_reads_what_the_trainer_was_told(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(train("unigram", symbols=("<sep>",), add_dummy_prefix=False, pad_id=3))
    model = read_sentencepiece(path)
    assert (model.algorithm, model.byte_fallback, model.add_dummy_prefix) == (
        "unigram",
        True,
        False,
    )
    assert (model.unknown, model.bos, model.eos, model.pad) == ("<unk>", "<s>", "</s>", "<pad>")
    assert model.texts(PieceKind.USER_DEFINED) == ["<sep>"]
    assert len(model.texts(PieceKind.BYTE)) == 256
    assert model.charsmap == b""


def test_every_truncation_is_noticed_or_harmless(tmp_path: Path) -> None:
    content = train()
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    whole = read_sentencepiece(path)
    rng = random.Random(0)
    for cut in [0, 1, len(content) - 1, *rng.sample(range(len(content)), 200)]:
        path.write_bytes(content[:cut])
        try:
            found = read_sentencepiece(path)
        except CheckpointError:
            continue
        assert found == whole


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no pieces"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"IQ== 0\nIg== 1\n", "no SentencePiece model"),
        (b"\x00\xff" * 500, "SentencePiece"),
    ],
    ids=["empty", "lfs", "tiktoken", "noise"],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=said):
        read_sentencepiece(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.model cannot be read"):
        read_sentencepiece(tmp_path / "tokenizer.model")


def _no_unknown(proto: Any) -> None:
    proto.pieces[0].type = PieceKind.CONTROL


def _twice(proto: Any) -> None:
    proto.pieces[300].piece = proto.pieces[301].piece


def _empty(proto: Any) -> None:
    proto.pieces[300].piece = ""


@pytest.mark.parametrize(
    ("damage", "said"), [(_no_unknown, "unknown"), (_twice, "twice"), (_empty, "empty piece")]
)
def test_unsound_pieces_are_refused(
    tmp_path: Path, damage: Callable[[Any], None], said: str
) -> None:
    proto = as_proto(train())
    damage(proto)
    path = tmp_path / "tokenizer.model"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(CheckpointError, match=said):
        read_sentencepiece(path)


def _words(proto: Any) -> None:
    proto.trainer_spec.model_type = 3


def _suffix(proto: Any) -> None:
    proto.trainer_spec.treat_whitespace_as_suffix = True


def _denormalized(proto: Any) -> None:
    proto.denormalizer_spec.precompiled_charsmap = b"table"


def _unused(proto: Any) -> None:
    proto.pieces[300].type = PieceKind.UNUSED


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_words, "algorithm"),
        (_suffix, "suffix"),
        (_denormalized, "denormalizer"),
        (_unused, "unused pieces"),
    ],
)
def test_what_no_fast_tokenizer_expresses_is_refused(
    tmp_path: Path, change: Callable[[Any], None], said: str
) -> None:
    proto = as_proto(train())
    change(proto)
    path = tmp_path / "tokenizer.model"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(UnsupportedModelError, match=f"{said}.*tokenizer.json"):
        read_sentencepiece(path)
