"""Command-line options that several commands share; their defaults are those of the dataclasses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

import click

from awqkit_runtime.config import DTYPES, MODEL_FORMATS, QUANT_POLICIES, EngineConfig
from awqkit_runtime.engine.sampling_params import SamplingParams
from awqkit_runtime.errors import RequestError

Command = TypeVar("Command", bound=Callable[..., Any])

quant_policy_option = click.option(
    "--quant-policy",
    type=click.Choice([str(policy) for policy in QUANT_POLICIES]),
    default=str(EngineConfig.quant_policy),
    show_default=True,
    help="KV cache: 0 in the model's dtype, 8 int8, 4 int4, k8v4 int8 keys and int4 values.",
)

tp_option = click.option(
    "--tp",
    type=click.IntRange(min=1),
    default=EngineConfig.tp,
    show_default=True,
    help="Processes that share the model, each with its own GPU or its part of the CPU.",
)

_SERVING_OPTIONS = (
    click.option(
        "--cache-max-entry-count",
        default=str(EngineConfig.cache_max_entry_count),
        show_default=True,
        metavar="SHARE|SIZE|TOKENS",
        help="KV cache: share of the memory free after the weights, or 8GiB, or 32768tok.",
    ),
    tp_option,
    click.option(
        "--session-len", type=click.IntRange(min=1),
        help="Tokens of prompt and answer together; without it what the model was made for.",
    ),
    click.option(
        "--max-batch-size", type=click.IntRange(min=1),
        help="Sequences that run at once; without it what suits the device.",
    ),
    click.option(
        "--max-prefill-tokens", type=click.IntRange(min=1),
        help="New tokens in one step, longer prompts are split; without it what suits the device.",
    ),
)  # fmt: skip

_LOADING_OPTIONS = (
    click.option(
        "--model-format", type=click.Choice(MODEL_FORMATS), default=EngineConfig.model_format,
        show_default=True, help="auto finds out; another one must be what the folder holds.",
    ),
    click.option(
        "--device", default=str(EngineConfig.device), show_default=True,
        metavar="auto|cpu|cuda|cuda:N", help="auto: a GPU where there is one.",
    ),
    click.option(
        "--dtype", type=click.Choice(["auto", *DTYPES]), default=str(EngineConfig.dtype),
        show_default=True, help="Of what is not quantized; auto is the checkpoint's own.",
    ),
)  # fmt: skip

_SAMPLING_OPTIONS = (
    click.option("--temperature", type=float, help="0 always takes the likeliest token."),
    click.option("--top-p", type=float, help="Keep the likeliest tokens up to this probability."),
    click.option("--top-k", type=int, help="Keep the k likeliest tokens; 0 keeps all."),
    click.option("--min-p", type=float, help="Drop tokens below this share of the likeliest one."),
    click.option("--repetition-penalty", type=float, help="Above 1: repeat less of what came."),
    click.option("--presence-penalty", type=float, help="-2…2, once per token of the answer."),
    click.option("--frequency-penalty", type=float, help="-2…2, for each time a token came."),
    click.option("--seed", type=int, help="The same seed gives the same answer."),
    click.option(
        "--max-tokens", type=int,
        help=f"Length of an answer at most.  [default: {SamplingParams.max_tokens}]",
    ),
    click.option("--min-tokens", type=int, help="Length of an answer at least."),
    click.option("--stop", multiple=True, metavar="TEXT", help="End before it; may be repeated."),
    click.option("--ignore-eos", is_flag=True, help="Go on after the model's stop tokens."),
)  # fmt: skip

_ENGINE_NAMES = {field.name for field in fields(EngineConfig)} - {"seed"}
_SAMPLING_NAMES = {field.name for field in fields(SamplingParams)}


def engine_options(command: Command) -> Command:
    """How the model is loaded and served."""
    return quant_policy_option(_apply(_SERVING_OPTIONS, loading_options(command)))


def loading_options(command: Command) -> Command:
    """How the model is loaded."""
    return _apply(_LOADING_OPTIONS, command)


def sampling_options(command: Command) -> Command:
    """How tokens are chosen; None means that the user said nothing."""
    return _apply(_SAMPLING_OPTIONS, command)


def engine_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of LLM among a command's options."""
    return {name: value for name, value in values.items() if name in _ENGINE_NAMES}


def engine_arguments(values: Mapping[str, Any]) -> list[str]:
    """The same engine options for another process's command line."""
    arguments: list[str] = []
    for name, value in engine_settings(values).items():
        if value is not None:
            arguments += [f"--{name.replace('_', '-')}", str(value)]
    return arguments


def sampling_params(
    values: Mapping[str, Any], defaults: SamplingParams | None = None
) -> SamplingParams:
    """`defaults` with what the user gave; a usage error where that makes no sense."""
    try:
        return replace(defaults or SamplingParams(), **_given(values))
    except RequestError as error:
        raise click.UsageError(str(error)) from error


def given_sampling(values: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling parameters that the user gave; a usage error where they make no sense."""
    sampling_params(values)
    return _given(values)


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in values.items()
        if name in _SAMPLING_NAMES and value is not None and value is not False and value != ()
    }


def _apply(options: tuple[Callable[[Command], Command], ...], command: Command) -> Command:
    for option in reversed(options):
        command = option(command)
    return command
