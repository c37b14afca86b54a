"""The model that a bench runs: a checkpoint's, or one of its shape with random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from awqkit.checkpoint import open_checkpoint
from awqkit_runtime.bench.random_weights import random_decoder
from awqkit_runtime.config import EngineConfig, resolve_device
from awqkit_runtime.engine.engine import Engine
from awqkit_runtime.engine.loading import ModelText, NoText, read_model_text
from awqkit_runtime.model_size import read_model_size
from awqkit_runtime.models.decoder import Decoder
from awqkit_runtime.models.loader import load_decoder, ready_placement


@dataclass(frozen=True, kw_only=True)
class Subject:
    """text: None where weights are random, whose words would mean nothing."""

    decoder: Decoder
    #: Which of the decoder's linears are kept in 4 bits.
    is_packed: Callable[[str], bool]
    text: ModelText | None

    def engine(self, config: EngineConfig) -> Engine:
        """A new engine around the decoder, with an empty cache."""
        tokenizer = self.text.tokenizer if self.text else None
        stops = self.text.stop_token_ids if self.text else ()
        return Engine(self.decoder, tokenizer or NoText(), config, stop_token_ids=stops)


def load_subject(
    model: str,
    *,
    model_format: str,
    device: str,
    dtype: str,
    random_weights: bool,
    session_len: int | None = None,
) -> Subject:
    """session_len: at most the model's own. Errors are those of loading a model."""
    if not random_weights:
        checkpoint = open_checkpoint(model, model_format=model_format)
        length = _shorter(session_len, checkpoint.config.max_position_embeddings)
        decoder = load_decoder(checkpoint, device=device, dtype=dtype, session_len=length)
        text = read_model_text(checkpoint)
        return Subject(decoder=decoder, is_packed=checkpoint.is_quantized, text=text)
    size = read_model_size(model, model_format)
    length = _shorter(session_len, size.config.max_position_embeddings)
    placement = ready_placement(size.config, resolve_device(device), dtype)
    decoder = random_decoder(size, placement, session_len=length)
    return Subject(decoder=decoder, is_packed=size.is_packed, text=None)


def _shorter(wanted: int | None, longest: int) -> int:
    return longest if wanted is None else min(wanted, longest)
