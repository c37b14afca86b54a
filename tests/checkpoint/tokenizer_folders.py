"""Model folders with tokenizers of every supported form, and nothing else in them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from awqkit.checkpoint import tokenizer_defaults
from awqkit.checkpoint.decoder_config import DecoderConfig
from tests.checkpoint.sentencepiece_models import as_proto, train, training_lines

#: As Llama 3, Qwen2 and their kin have it.
TURN_TEMPLATE = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
REMOTE_CODE = {
    "auto_map": {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]},
    "tokenizer_class": "OwnTokenizer",
}


def tiny_config(vocab_size: int = 100_000, **fields: Any) -> DecoderConfig:
    sizes = {
        "hidden_size": 8,
        "num_layers": 1,
        "num_heads": 1,
        "num_kv_heads": 1,
        "head_dim": 8,
        "intermediate_size": 8,
        "max_position_embeddings": 64,
    }
    return DecoderConfig(norm_eps=1e-5, vocab_size=vocab_size, **sizes, **fields)


def write_json(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document), encoding="utf-8")


def byte_level_tokenizer(*, bos: str | None = None) -> Tokenizer:
    """A byte-level BPE with the special tokens of a chat model."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|begin|>", "<|end_of_text|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_lines(count=100), trainer)
    if bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"],
            pair=[bos, "$A", bos, "$B:1"],
            special_tokens=[(bos, tokenizer.token_to_id(bos))],
        )
    return tokenizer


def write_fast_folder(folder: Path, *, bos: str | None = None, **config: Any) -> Path:
    """A folder with a tokenizer.json and a tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    byte_level_tokenizer(bos=bos).save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<|begin|>", "eos_token": "<|end_of_text|>"}
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", **named, **config},
    )
    return folder


def write_sentencepiece_folder(folder: Path, *, model: bytes | None = None, **config: Any) -> Path:
    """A folder with a tokenizer.model, and a tokenizer_config.json unless `config` is empty."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(train() if model is None else model)
    if config:
        write_json(folder / "tokenizer_config.json", config)
    return folder


def write_reserving_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, **config: Any
) -> tuple[int, int]:
    """A small model with two reserved pieces, which the families' defaults name.

    Returns the ids of <|im_end|> and <|im_start|>.
    """
    model = train(symbols=("[UNUSED_0]", "[UNUSED_1]"), add_dummy_prefix=False)
    write_sentencepiece_folder(folder, model=model, **config)
    pieces = [piece.piece for piece in as_proto(model).pieces]
    im_end, im_start = pieces.index("[UNUSED_0]"), pieces.index("[UNUSED_1]")
    names = {im_end: "<|im_end|>", im_start: "<|im_start|>"}
    families = [replace(family, reserved_names=names) for family in tokenizer_defaults.FAMILIES]
    monkeypatch.setattr(tokenizer_defaults, "FAMILIES", tuple(families))
    return im_end, im_start


def internlm2_shaped_model() -> bytes:
    """A small model stretched to InternLM2's ids, with its reserved pieces at the end."""
    proto = as_proto(train(add_dummy_prefix=False, remove_extra_whitespaces=False))
    for index in range(len(proto.pieces), 92_544 - 147):
        proto.pieces.add(piece=f"⟦{index}⟧", score=-1e6, type=1)
    for index in range(147):
        proto.pieces.add(piece=f"[UNUSED_TOKEN_{index}]", score=0.0, type=4)
    return bytes(proto.SerializeToString())
