"""A model folder's tokenizer in the transformers library's class, for those who work with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from awqkit.checkpoint.tokenizer_loading import load_tokenizer
from awqkit.checkpoint.tokenizer_settings import read_settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def transformers_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    """The same ids and texts as load_tokenizer's, and the same errors. Importing it takes long."""
    from transformers import PreTrainedTokenizerFast

    tokenizer, settings = load_tokenizer(folder), read_settings(Path(folder))
    # Without the folder's path: given one, transformers may ask the hub about the model.
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend,
        **tokenizer.named_tokens,
        extra_special_tokens=list(settings.extra_special),
        chat_template=tokenizer.chat_template,
        **settings.options,
    )
