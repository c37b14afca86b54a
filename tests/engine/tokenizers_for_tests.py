"""Real tokenizers of the two kinds that checkpoints bring, small enough to make in a test."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import pytest

from awqkit.checkpoint.tokenizer import TextTokenizer, load_tokenizer

TEXT = (
    "The old lighthouse keeper counted 1,234 waves; then he laughed.\n\n\tIt's 5 o'clock -- isn't "
    "it?  naïve café, façade. 灯塔看守人数着海浪,然后笑了起来。你好,世界!今天天气很好。"
    "Привет, мир. こんにちは世界。안녕하세요. 🙂👨‍👩‍👧‍👦🇨🇳 ✨ a\u0301 … €5 — end."
)


@functools.cache
def byte_level_tokenizer() -> TextTokenizer:
    """GPT-2's kind: merges over bytes, so that a token may end inside a character."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<s>", "</s>", "<|im_start|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    named = {"bos_token": "<s>", "eos_token": "</s>"}
    return TextTokenizer(backend=tokenizer, named_tokens=named, chat_template=None)


@functools.cache
def byte_fallback_tokenizer() -> TextTokenizer:
    """SentencePiece's kind: ▁ for spaces, and one token per byte of unknown characters."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    pieces += [chr(code) for code in range(ord("a"), ord("z") + 1)]
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁", "a"), ("i", "n"), ("▁", "l")]
    pieces += ["".join(pair) for pair in merges] + ["你", "好"]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: index for index, piece in enumerate(pieces)},
            merges=merges,
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<s>", "</s>", "<unk>"])
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return TextTokenizer(backend=tokenizer, named_tokens=named, chat_template=None)


@functools.cache
def stories_tokenizer() -> TextTokenizer:
    """That of a real SentencePiece model; skips where the folder is absent."""
    return load_tokenizer(shared_folder("models/stories260k"))


def shared_folder(name: str) -> Path:
    folder = Path(__file__).parents[2] / ".." / "shared" / name
    if not os.path.isdir(folder):
        pytest.skip(f"../shared/{name} is not on this machine")
    return folder
