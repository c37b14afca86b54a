"""A random model that chats: whole folder with weights, tokenizer, template and wishes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.engine.tokenizers_for_tests import byte_level_tokenizer
from tests.tiny_models import write_tiny_model
from tests.tokenizer_files import write_tokenizer

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}</s>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WISHES = {"temperature": 0.6, "top_p": 0.9, "top_k": 30, "eos_token_id": 1}


def write_chat_model(
    folder: Path,
    *,
    chat: bool = True,
    tokenizer: bool = True,
    wishes: dict[str, Any] | None = None,
    session_len: int = 512,
    seed: int = 0,
) -> Path:
    """chat: with a chat template. wishes: generation_config.json."""
    words = byte_level_tokenizer()
    write_tiny_model(
        folder,
        vocab_size=len(words.vocabulary),
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=None,
        max_position_embeddings=session_len,
        seed=seed,
    )
    if tokenizer:
        write_tokenizer(folder, replace(words, chat_template=TEMPLATE if chat else None))
    (folder / "generation_config.json").write_text(json.dumps(WISHES if wishes is None else wishes))
    return folder
