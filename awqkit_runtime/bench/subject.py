"""The model that a bench runs: a checkpoint's, or one of its shape with random weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from awqkit.checkpoint import open_checkpoint
from awqkit_runtime.bench.random_weights import random_decoder
from awqkit_runtime.cache.pool import PagePool
from awqkit_runtime.config import EngineConfig, QuantPolicy
from awqkit_runtime.engine.engine import Engine
from awqkit_runtime.engine.model_text import (
    ModelText,
    NoText,
    read_model_text,
    read_tokenizer,
)
from awqkit_runtime.engine.parallel.loading import SharedModel, load_shared
from awqkit_runtime.engine.parallel.noise import fill_with_noise
from awqkit_runtime.engine.runner import Runner
from awqkit_runtime.engine.runners import runner_for
from awqkit_runtime.engine.steady_runner import SteadyRunner
from awqkit_runtime.errors import ConfigError
from awqkit_runtime.model_size import read_model_size
from awqkit_runtime.models.decoder import Decoder
from awqkit_runtime.models.footprint import BitsOf
from awqkit_runtime.models.loader import load_decoder, ready_placement


@dataclass(frozen=True, kw_only=True)
class Subject:
    """text: None where weights are random, whose words would mean nothing."""

    decoder: Decoder
    #: Of the codes of each of the decoder's matrices.
    bits_of: BitsOf
    text: ModelText | None = None
    #: Where several ranks share the model.
    shared: SharedModel | None = None

    @property
    def ranks(self) -> int:
        return 1 if self.shared is None else self.shared.team.ranks

    def engine(self, config: EngineConfig) -> Engine:
        """A new engine around the decoder, with an empty cache."""
        new_runner = None
        if self.shared is not None:
            new_runner = partial(self.shared.new_runner, config=config)
        return Engine(
            self.decoder,
            (self.text and self.text.tokenizer) or NoText(),
            config,
            stop_token_ids=self.text.stop_token_ids if self.text else (),
            new_runner=new_runner,
        )

    def runner(
        self, pool: PagePool, quant_policy: QuantPolicy, *, max_rows: int
    ) -> Runner | SteadyRunner:
        """What computes steps of so many sequences over this pool, as in the engine.

        The pool gets random keys and values on every rank.
        """
        fill_with_noise(pool)
        config = EngineConfig(quant_policy=quant_policy, max_batch_size=max_rows)
        if self.shared is None:
            return runner_for(self.decoder, pool, config)
        return self.shared.new_runner(self.decoder, pool, config=config, noise=True)


def load_subject(
    model: str, config: EngineConfig, *, random_weights: bool, longest: int | None = None
) -> Subject:
    """Of the config what says how to load counts. longest: tokens of a session, if the model can.

    Errors are those of loading a model.
    """
    if random_weights:
        return _random_subject(model, config, longest)
    checkpoint = open_checkpoint(model, model_format=config.model_format)
    length = _shorter(longest, checkpoint.config.max_position_embeddings)
    shared = None
    if config.tp > 1:
        shared = load_shared(checkpoint, replace(config, session_len=length))
        decoder = shared.decoder
    else:
        decoder = load_decoder(
            checkpoint, device=config.device, dtype=config.dtype, session_len=length
        )
    return Subject(
        decoder=decoder,
        bits_of=checkpoint.bits,
        text=read_model_text(
            checkpoint.folder, checkpoint.config, read_tokenizer(checkpoint.folder)
        ),
        shared=shared,
    )


def _random_subject(model: str, config: EngineConfig, longest: int | None) -> Subject:
    if config.tp > 1:
        raise ConfigError(
            f"tp is {config.tp}, but random weights run on one device in this version. Use tp=1, "
            "or a folder with weights."
        )
    size = read_model_size(model, config.model_format)
    length = _shorter(longest, size.config.max_position_embeddings)
    placement = ready_placement(size.config, config.torch_device(), config.dtype)
    decoder = random_decoder(size, placement, session_len=length)
    return Subject(decoder=decoder, bits_of=size.bits_of)


def _shorter(wanted: int | None, longest: int) -> int:
    return longest if wanted is None else min(wanted, longest)
