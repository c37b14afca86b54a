"""Small SentencePiece models trained on the spot, and texts that strain a tokenizer."""

from __future__ import annotations

import io
import random
from functools import lru_cache
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

SHARED = Path(__file__).parents[2] / "../shared"

_TEXT = (
    "the a river ran under old bridge and nobody saw who left lantern there when rain began to "
    "fall on roofs of quiet town Martha closed her book because wind had found every crack in "
    "window isn't 42 1987 naïve café über façade l'été don't well-known end. why? yes! x=1; "
    "f(x) return None { } [0] //"
)
_WORDS = _TEXT.split()
_CHINESE = "今天天气很好我们去公园散步他说明天会下雨请带伞这本书讲述一个古老的故事"


def training_lines(*, seed: int = 0, count: int = 600) -> list[str]:
    rng = random.Random(seed)
    lines = []
    for _ in range(count):
        if rng.random() < 0.2:
            lines.append("".join(rng.choices(_CHINESE, k=rng.randrange(4, 30))) + "。")
        else:
            lines.append(" ".join(rng.choices(_WORDS, k=rng.randrange(3, 20))))
    return lines


@lru_cache(maxsize=64)
def _train(options: tuple[tuple[str, Any], ...]) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(training_lines()),
        model_writer=model,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
        # The trainer takes lists, and would write a tuple out as Python does.
        **{key: list(value) if isinstance(value, tuple) else value for key, value in options},
    )
    return model.getvalue()


def train(
    algorithm: str = "bpe",
    *,
    normalization: str = "identity",
    symbols: tuple[str, ...] = (),
    vocab_size: int = 600,
    byte_fallback: bool = True,
    **options: Any,
) -> bytes:
    """A model file's bytes. Options are those of SentencePiece's trainer."""
    chosen = {
        "model_type": algorithm,
        "normalization_rule_name": normalization,
        "user_defined_symbols": symbols,
        "vocab_size": vocab_size + 256 * byte_fallback,
        "byte_fallback": byte_fallback,
        **options,
    }
    return _train(tuple(sorted(chosen.items())))


def as_proto(model: bytes) -> Any:
    messages: Any = sentencepiece_model_pb2
    proto = messages.ModelProto()
    proto.ParseFromString(model)
    return proto


#: Texts that broke a tokenizer somewhere, each for its own reason.
HARD_TEXTS = (
    "",
    " ",
    "   ",
    "a",
    " a",
    "a ",
    "  two  spaces   three    four  ",
    "\ttab\t\ttabs\n\nnewlines\n\n\n \n end\r\n\r\n",
    "def f(x):\n    if x > 0x0A:\n\treturn {'a': [1, 2]}  # done\n",
    "今天天气很好,我们去公园散步。他说:“明天会下雨”……——！？",
    "mixed 中文 and English，with 全角 ＡＢＣ１２３ letters",
    "👨‍👩‍👧‍👦 family, 🇩🇪🇨🇳 flags, 👍🏽 skin, ☕️ and 🫠",
    "e\u0301 \u00e9 a\u0308\u0323 Z͑ͫ̓a̴l̷g̸o",
    "Tiếng Việt, 한국어, ไทย น้ำ, العربية, हिन्दी, עברית",
    "nul \0 and \x01\x02\x1b\x7f\x85 controls\u200b\u200d\u2028\u2029\ufeff",
    "▁literal ▁▁ marks▁",
    "<0x0A> [UNUSED_TOKEN_3] <|im_start|>",
    "\U0010ffff\ufffd\ue000\U0001f9ff",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "========================================\n----\n****",
    "https://example.org/a_b-c?d=e%20f&g#h 3.14159 -1,000,000 10:30",
)


def random_texts(pieces: list[str], *, seed: int, count: int) -> list[str]:
    """Texts of random characters, random pieces, cut pieces, and long runs of few characters."""
    rng = random.Random(seed)
    ranges = ((1, 0x300), (0x300, 0xD800), (0xE000, 0xFFFE), (0x10000, 0x1FFFF))
    few = [*" \t\n▁aeo-=*_#.0\r", "，", "的", "…"]

    def characters() -> str:
        return "".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randrange(40)))

    def whole_pieces() -> str:
        return "".join(rng.choices(pieces, k=rng.randrange(1, 12)))

    def repeated_piece() -> str:
        return rng.choice(pieces) * rng.randrange(1, 12)

    def cut_pieces() -> str:
        return "".join(piece[: rng.randrange(1, 6)] for piece in rng.choices(pieces, k=20))

    def runs() -> str:
        alphabet = rng.sample(few, rng.randrange(1, 5))
        return "".join(
            rng.choice(alphabet) * rng.randrange(1, 20) for _ in range(rng.randrange(1, 12))
        )

    def letters() -> str:
        return "".join(rng.choices(" etaoinshrdlu", k=rng.randrange(60)))

    kinds = (characters, whole_pieces, repeated_piece, cut_pieces, runs, letters)
    return [rng.choice(kinds)() for _ in range(count)]
