"""A SentencePiece model file as plain data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Literal, NamedTuple

from awqkit.checkpoint.errors import CheckpointError, UnsupportedModelError

#: SentencePiece writes a space as this character, U+2581.
SPACE_MARK = "▁"
Algorithm = Literal["bpe", "unigram"]
#: ModelProto.TrainerSpec.ModelType
_ALGORITHMS: dict[int, Algorithm] = {1: "unigram", 2: "bpe"}
_CURE = "Fetch the file again from where it came."


class PieceKind(IntEnum):
    """ModelProto.SentencePiece.Type."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Piece(NamedTuple):
    text: str
    #: BPE: a higher score merges earlier. Unigram: a log probability.
    score: float
    kind: PieceKind


@dataclass(frozen=True, kw_only=True)
class SentencePieceModel:
    """What a tokenizer.model says about splitting and joining text; a piece's index is its id."""

    pieces: tuple[Piece, ...]
    algorithm: Algorithm
    byte_fallback: bool
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool
    #: SentencePiece's compiled table of replacements; empty for the identity.
    charsmap: bytes
    unknown: str
    bos: str | None
    eos: str | None
    pad: str | None

    def texts(self, *kinds: PieceKind) -> list[str]:
        return [piece.text for piece in self.pieces if piece.kind in kinds]


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Read a `tokenizer.model`.

    Raises CheckpointError where the file is missing, damaged or something else, and
    UnsupportedModelError where it uses an option that a fast tokenizer cannot express.
    """
    proto = _parse(path)
    _require_whole(proto, path)
    _require_expressible(proto, path)
    pieces = tuple(Piece(piece.piece, piece.score, PieceKind(piece.type)) for piece in proto.pieces)
    unknown = _require_sound(pieces, path)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    controls = {piece.text for piece in pieces if piece.kind is PieceKind.CONTROL}
    return SentencePieceModel(
        pieces=pieces,
        algorithm=_ALGORITHMS[trainer.model_type],
        byte_fallback=trainer.byte_fallback,
        add_dummy_prefix=normalizer.add_dummy_prefix,
        remove_extra_whitespaces=normalizer.remove_extra_whitespaces,
        escape_whitespaces=normalizer.escape_whitespaces,
        charsmap=normalizer.precompiled_charsmap,
        unknown=unknown,
        bos=trainer.bos_piece if trainer.bos_piece in controls else None,
        eos=trainer.eos_piece if trainer.eos_piece in controls else None,
        pad=trainer.pad_piece if trainer.pad_piece in controls else None,
    )


def _parse(path: Path) -> Any:
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    if content.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{path} is a Git LFS pointer and not the file itself. Run `git lfs pull` in the "
            "folder, or fetch the model with the Hugging Face command line."
        )
    messages: Any = sentencepiece_model_pb2
    proto = messages.ModelProto()
    try:
        proto.ParseFromString(content)
    except DecodeError as error:
        raise CheckpointError(
            f"{path} is not a SentencePiece model, or it is damaged or cut short. {_CURE}"
        ) from error
    return proto


def _require_whole(proto: Any, path: Path) -> None:
    """A file that ends early can still parse; the pieces come first and the two specs after."""
    missing = [
        part
        for part, there in {
            "pieces": len(proto.pieces) > 0,
            "training options": proto.HasField("trainer_spec"),
            "normalization options": proto.HasField("normalizer_spec"),
        }.items()
        if not there
    ]
    if missing:
        raise CheckpointError(
            f"{path} has no {' and no '.join(missing)}: it is cut short, or no SentencePiece "
            f"model. {_CURE}"
        )


def _require_expressible(proto: Any, path: Path) -> None:
    trainer = proto.trainer_spec
    reasons = {
        "an algorithm other than BPE and Unigram": trainer.model_type not in _ALGORITHMS,
        "whitespace as a suffix": trainer.treat_whitespace_as_suffix,
        "a denormalizer": bool(proto.denormalizer_spec.precompiled_charsmap),
        "unused pieces in a BPE vocabulary": _ALGORITHMS.get(trainer.model_type) == "bpe"
        and any(piece.type == PieceKind.UNUSED for piece in proto.pieces),
    }
    found = [reason for reason, holds in reasons.items() if holds]
    if found:
        raise UnsupportedModelError(
            f"{path} uses {' and '.join(found)}, which no fast tokenizer can express. Put a "
            "tokenizer.json next to it, made by whoever published the model."
        )


def _require_sound(pieces: tuple[Piece, ...], path: Path) -> str:
    """Check what SentencePiece itself demands of the pieces; returns the unknown one's text."""
    unknown = [piece.text for piece in pieces if piece.kind is PieceKind.UNKNOWN]
    fault = None
    # protobuf gives bytes for a text that is not UTF-8.
    if not all(isinstance(piece.text, str) for piece in pieces):
        fault = "a piece that is not UTF-8"
    elif not all(math.isfinite(piece.score) for piece in pieces):
        fault = "a piece without a finite score"
    elif len(unknown) != 1:
        fault = f"{len(unknown)} unknown pieces where exactly one is needed"
    elif len({piece.text for piece in pieces}) != len(pieces):
        fault = "a piece that occurs twice"
    elif any(not piece.text for piece in pieces):
        fault = "an empty piece"
    if fault:
        raise CheckpointError(f"{path} has {fault}: it is damaged. {_CURE}")
    return unknown[0]
