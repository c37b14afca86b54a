"""A tokenizer that was made in a test, in a folder as checkpoints have it."""

from __future__ import annotations

import json
from pathlib import Path

from awqkit.checkpoint.tokenizer import TextTokenizer


def write_tokenizer(folder: Path, tokenizer: TextTokenizer) -> None:
    """tokenizer.json and tokenizer_config.json, into an existing folder."""
    tokenizer.backend.save(str(folder / "tokenizer.json"))
    template = tokenizer.chat_template
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **tokenizer.named_tokens,
        **({} if template is None else {"chat_template": template}),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
