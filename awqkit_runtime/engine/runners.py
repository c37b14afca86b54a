"""Which runner computes the steps of an engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from awqkit_runtime.cache.pool import PagePool
from awqkit_runtime.config import EngineConfig
from awqkit_runtime.engine.cuda_graphs import CudaGraphs
from awqkit_runtime.engine.graph_runner import GraphRunner
from awqkit_runtime.engine.memory import set_aside
from awqkit_runtime.engine.runner import DecoderModel, Runner
from awqkit_runtime.engine.steady_kernel_runner import SteadyKernelRunner
from awqkit_runtime.engine.steady_runner import SteadyRunner, tile_rows
from awqkit_runtime.engine.step_memory import (
    StepMemory,
    decodes_run_in_kernels,
    graph_pool_bytes,
    makes_graphs,
    reserved,
    step_memory,
)
from awqkit_runtime.kernels.paged_decode import prepare_decode, prepare_steady_decode

if TYPE_CHECKING:
    from awqkit_runtime.models.decoder import Decoder


def new_runner(
    decoder: DecoderModel, pool: PagePool, *, config: EngineConfig
) -> Runner | SteadyRunner:
    """The engine's. On a GPU all memory that steps take is set aside now."""
    if size := workspace_for_steps(decoder, config):
        set_aside(size, decoder.device)
    return runner_for(decoder, pool, config)


def runner_for(
    decoder: DecoderModel, pool: PagePool, config: EngineConfig
) -> Runner | SteadyRunner:
    """What the config asks for and the device can."""
    if decoder.device.type == "cuda":
        new_runner = _steady_gpu_runner if config.deterministic else _gpu_runner
        return new_runner(cast("Decoder", decoder), pool, config)
    return SteadyRunner(decoder, pool) if config.deterministic else Runner(decoder, pool)


def reserved_for_steps(decoder: DecoderModel, config: EngineConfig) -> int:
    """Bytes of the decoder's device that the cache leaves to the steps; 0 on a CPU."""
    if decoder.device.type != "cuda":
        return 0
    return reserved(_steps(cast("Decoder", decoder), config), decoder.device)


def workspace_for_steps(decoder: DecoderModel, config: EngineConfig) -> int:
    """Those of them that the largest step takes for a while; 0 on a CPU."""
    if decoder.device.type != "cuda":
        return 0
    return _steps(cast("Decoder", decoder), config).workspace.total


def claimed_for_steps(decoder: DecoderModel, config: EngineConfig) -> int:
    """Those of them that come and go, or come with the first steps; 0 on a CPU."""
    if decoder.device.type != "cuda":
        return 0
    steps = _steps(cast("Decoder", decoder), config)
    return steps.workspace.total + steps.graphs


def _steps(decoder: Decoder, config: EngineConfig) -> StepMemory:
    return step_memory(decoder.config, decoder.placement, config, session_len=decoder.session_len)


def _gpu_runner(decoder: Decoder, pool: PagePool, config: EngineConfig) -> Runner:
    model, placement = decoder.config, decoder.placement
    if not makes_graphs(model, placement, pool.format, config):
        prepare_launches(decoder, pool)
        return Runner(decoder, pool)
    max_rows = config.batch_size_for(decoder.device)
    return GraphRunner(decoder, pool, graphs_for(decoder, pool, max_rows), max_rows=max_rows)


def _steady_gpu_runner(decoder: Decoder, pool: PagePool, config: EngineConfig) -> SteadyRunner:
    model, placement = decoder.config, decoder.placement
    if not decodes_run_in_kernels(model, placement, pool.format):
        return SteadyRunner(decoder, pool)
    rows = tile_rows(model)
    prepare_steady_decode(pool.format, model.num_heads, rows, decoder.device)
    graphs = None
    if makes_graphs(model, placement, pool.format, config):
        pool_bytes = graph_pool_bytes(model, placement, rows)
        graphs = CudaGraphs(decoder.device, pool_bytes=pool_bytes)
    return SteadyKernelRunner(decoder, pool, graphs)


def prepare_launches(decoder: Decoder, pool: PagePool) -> None:
    """Compiles now what decodes without graphs launch, where kernels compute them: else the first
    of them would wait for it. On a CPU nothing is done."""
    model = decoder.config
    if decodes_run_in_kernels(model, decoder.placement, pool.format):
        prepare_decode(pool.format, model.num_heads, decoder.device)


def graphs_for(decoder: Decoder, pool: PagePool, max_rows: int) -> CudaGraphs:
    """Of decodes of so many sequences at most; their kernels are compiled now."""
    model, placement = decoder.config, decoder.placement
    prepare_decode(pool.format, model.num_heads, decoder.device)
    pool_bytes = graph_pool_bytes(model, placement, max_rows)
    return CudaGraphs(decoder.device, pool_bytes=pool_bytes)
