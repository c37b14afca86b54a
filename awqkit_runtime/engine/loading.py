"""From a folder or hub id to an engine, with what is needed to talk to it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from awqkit.checkpoint import Checkpoint, DecoderConfig, open_checkpoint
from awqkit_runtime.cache.key_frame import PLAIN_FRAME, KeyFrame
from awqkit_runtime.cache.page_format import PageFormat
from awqkit_runtime.cache.pool import PagePool
from awqkit_runtime.config import EngineConfig
from awqkit_runtime.engine.constraint import GrammarCompiler
from awqkit_runtime.engine.engine import Engine
from awqkit_runtime.engine.key_choice import key_frame_for
from awqkit_runtime.engine.memory import free_memory, part_of_memory
from awqkit_runtime.engine.model_text import (
    ModelText,
    NoText,
    read_model_text,
    read_tokenizer,
)
from awqkit_runtime.engine.parallel.loading import load_shared
from awqkit_runtime.engine.parallel.shares import shard_config
from awqkit_runtime.engine.plan import MemoryPlan, plan_memory
from awqkit_runtime.engine.runner import DecoderModel, Runner
from awqkit_runtime.engine.steady_runner import SteadyRunner
from awqkit_runtime.engine.step_memory import LATE_BYTES
from awqkit_runtime.engine.warm_up import libraries_made_meanwhile
from awqkit_runtime.kernels.cuda.availability import cuda_kernels_usable
from awqkit_runtime.layers.placement import Placement
from awqkit_runtime.models.footprint import loaded_bytes
from awqkit_runtime.models.loader import load_decoder, resolve_dtype


def plan_engine(checkpoint: Checkpoint, config: EngineConfig) -> MemoryPlan:
    """Where the memory that is free now will go, of each rank where several share the model.

    DoesNotFit, ConfigError where it is not enough.
    """
    local = shard_config(checkpoint.config, config.tp)
    placement = _placement(local, config)
    device = placement.device
    return plan_memory(
        local,
        weights=loaded_bytes(local, checkpoint.bits, placement),
        memory=part_of_memory(free_memory(device), device, config.tp),
        engine=config,
        placement=placement,
    )


def _placement(model: DecoderConfig, config: EngineConfig) -> Placement:
    device = config.torch_device()
    return Placement(
        device=device,
        dtype=resolve_dtype(model, config.dtype, device),
        has_cuda_kernels=device.type == "cuda" and cuda_kernels_usable(device),
    )


def load_engine(
    path: str | Path,
    config: EngineConfig,
    *,
    announce: Callable[[MemoryPlan], None] | None = None,
) -> tuple[Engine, ModelText]:
    """Loads a model and makes its cache; with 4-bit keys the model first tries how to lay them.

    announce: is told of the plan before anything is loaded.

    CheckpointError, UnsupportedModelError, ConfigError, NumericsError or OutOfMemoryError where
    that cannot be. A warning where 4-bit keys do harm.
    """
    checkpoint = open_checkpoint(path, model_format=config.model_format)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_tokenizer, checkpoint.folder)  # Beside the start of the device.
        plan = plan_engine(checkpoint, config)
        if announce is not None:
            announce(plan)
        config = replace(config, max_prefill_tokens=plan.step_tokens)
        load = _shared_model if config.tp > 1 else _whole_model
        # A damaged tokenizer is told of before anyone waits for weights.
        completing = pool.submit(
            read_model_text, checkpoint.folder, checkpoint.config, reading.result()
        )
        model = load(checkpoint, config, plan)
        text = completing.result()
    tokenizer, stops = text.tokenizer, text.stop_token_ids
    grammars = (
        None
        if tokenizer is None
        else GrammarCompiler(tokenizer, checkpoint.config.vocab_size, stops)
    )
    engine = Engine(
        model.decoder,
        tokenizer or NoText(),
        config,
        stop_token_ids=stops,
        grammars=grammars,
        key_frame=model.key_frame,
        new_runner=model.new_runner,
        free_bytes=model.free_bytes,
    )
    return engine, text


@dataclass(frozen=True, kw_only=True)
class _LoadedModel:
    """What an Engine needs of a model; of each the Engine's documentation says more."""

    decoder: DecoderModel
    key_frame: KeyFrame = PLAIN_FRAME
    new_runner: Callable[[DecoderModel, PagePool], Runner | SteadyRunner] | None = None
    free_bytes: int | None


def _whole_model(checkpoint: Checkpoint, config: EngineConfig, plan: MemoryPlan) -> _LoadedModel:
    """Of a model that one process computes."""
    placement = _placement(checkpoint.config, config)
    with libraries_made_meanwhile(placement, checkpoint.config.head_dim):
        decoder = load_decoder(
            checkpoint, device=config.device, dtype=config.dtype, session_len=config.session_len
        )
    page_format = PageFormat.for_policy(decoder.config, config.policy, decoder.dtype)
    key_frame = key_frame_for(decoder, page_format)
    return _LoadedModel(
        decoder=decoder,
        key_frame=key_frame,
        free_bytes=free_as_planned(plan, decoder.device),
    )


def _shared_model(checkpoint: Checkpoint, config: EngineConfig, plan: MemoryPlan) -> _LoadedModel:
    """Of one that several processes share."""
    shared = load_shared(checkpoint, config)
    new_runner = partial(shared.new_runner, config=config)
    return _LoadedModel(decoder=shared.decoder, new_runner=new_runner, free_bytes=shared.free_bytes)


def free_as_planned(plan: MemoryPlan, device: torch.device) -> int | None:
    """What the cache gets its share of, once weights and libraries are there; None for what is free
    now.

    On a GPU what the plan said, so that it holds, unless less is left: libraries may keep more than
    the plan counts, and others take memory in the meantime.
    """
    if device.type != "cuda":
        return None
    return min(plan.free, free_memory(device) + plan.libraries - LATE_BYTES)
