"""What turns texts into a model's tokens and back, without its weights, and without torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from awqkit.checkpoint.decoder_config import DecoderConfig
from awqkit.checkpoint.stop_tokens import read_generation_config
from awqkit.checkpoint.tokenizer import (
    TextTokenizer,
    has_tokenizer,
    load_tokenizer,
    stop_token_ids,
)
from awqkit_runtime.engine.generation_defaults import sampling_defaults
from awqkit_runtime.engine.sampling_params import SamplingParams


@dataclass(frozen=True, kw_only=True)
class ModelText:
    """See the module."""

    folder: Path
    #: None where the folder has none; such a model reads and writes token ids.
    tokenizer: TextTokenizer | None
    bos_token_id: int | None
    stop_token_ids: tuple[int, ...]
    #: For conversations: what the model's generation_config.json asks for.
    chat_defaults: SamplingParams

    @cached_property
    def added_tokens(self) -> dict[str, int]:
        """Ids of tokens that stand for themselves, whatever text is around them."""
        added = {} if self.tokenizer is None else self.tokenizer.added_tokens
        return {token.content: index for index, token in added.items()}

    @property
    def has_chat_template(self) -> bool:
        return self.tokenizer is not None and bool(self.tokenizer.chat_template)


class NoText:
    """Stands in for the tokenizer of a folder without one."""

    def decode(self, token_ids: list[int], /, *, skip_special_tokens: bool) -> str:
        return ""


def read_tokenizer(folder: Path) -> TextTokenizer | None:
    """That of a model's folder; None where it has none. CheckpointError where it is damaged."""
    return load_tokenizer(folder) if has_tokenizer(folder) else None


def read_model_text(
    folder: Path, config: DecoderConfig, tokenizer: TextTokenizer | None
) -> ModelText:
    """tokenizer: read_tokenizer's. CheckpointError where the generation settings are damaged."""
    return ModelText(
        folder=folder,
        tokenizer=tokenizer,
        bos_token_id=config.bos_token_id,
        stop_token_ids=stop_token_ids(folder, config, tokenizer=tokenizer),
        chat_defaults=sampling_defaults(read_generation_config(folder)),
    )
