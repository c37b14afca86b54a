"""From a folder or hub id to an engine, with what is needed to talk to it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from awqkit.checkpoint import Checkpoint, open_checkpoint
from awqkit_runtime.config import EngineConfig
from awqkit_runtime.engine.engine import Engine
from awqkit_runtime.engine.generation_defaults import sampling_defaults
from awqkit_runtime.engine.grammar import GrammarCompiler
from awqkit_runtime.engine.sampling_params import SamplingParams
from awqkit_runtime.models.loader import load_decoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, kw_only=True)
class ModelText:
    """What turns texts into a model's tokens and back, without its weights."""

    folder: Path
    #: None where the folder has none; such a model reads and writes token ids.
    tokenizer: PreTrainedTokenizerFast | None
    bos_token_id: int | None
    stop_token_ids: tuple[int, ...]
    #: For conversations: what the model's generation_config.json asks for.
    chat_defaults: SamplingParams

    @cached_property
    def added_tokens(self) -> dict[str, int]:
        """Ids of tokens that stand for themselves, whatever text is around them."""
        return {} if self.tokenizer is None else dict(self.tokenizer.get_added_vocab())

    @property
    def has_chat_template(self) -> bool:
        return self.tokenizer is not None and bool(self.tokenizer.chat_template)


class NoText:
    """Stands in for the tokenizer of a folder without one."""

    def decode(self, token_ids: list[int], **options: Any) -> str:
        return ""


def read_model_text(checkpoint: Checkpoint) -> ModelText:
    """The tokenizer and the generation settings of a checkpoint's folder."""
    from awqkit.checkpoint.stop_tokens import read_generation_config
    from awqkit.checkpoint.tokenizer import has_tokenizer, load_tokenizer, stop_token_ids

    folder = checkpoint.folder
    tokenizer = load_tokenizer(folder) if has_tokenizer(folder) else None
    return ModelText(
        folder=folder,
        tokenizer=tokenizer,
        bos_token_id=checkpoint.config.bos_token_id,
        stop_token_ids=stop_token_ids(folder, checkpoint.config, tokenizer=tokenizer),
        chat_defaults=sampling_defaults(read_generation_config(folder)),
    )


def load_engine(path: str | Path, config: EngineConfig) -> tuple[Engine, ModelText]:
    """Loads a model and makes its cache.

    CheckpointError, UnsupportedModelError, ConfigError or OutOfMemoryError where that cannot be.
    """
    checkpoint = open_checkpoint(path, model_format=config.model_format)
    text = read_model_text(checkpoint)
    decoder = load_decoder(
        checkpoint, device=config.device, dtype=config.dtype, session_len=config.session_len
    )
    tokenizer, stops = text.tokenizer, text.stop_token_ids
    grammars = (
        None
        if tokenizer is None
        else GrammarCompiler(tokenizer, checkpoint.config.vocab_size, stops)
    )
    engine = Engine(decoder, tokenizer or NoText(), config, stop_token_ids=stops, grammars=grammars)
    return engine, text
