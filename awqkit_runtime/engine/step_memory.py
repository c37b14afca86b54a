"""Bytes that steps take besides weights and cache: the largest step, graphs, what libraries keep.

All of it follows from shapes, before a device is touched; a test compares the sum with what a GPU
reports.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from awqkit.checkpoint import DecoderConfig
from awqkit.decoder import layer_ropes
from awqkit_runtime.cache.page_format import PageFormat, pages_for
from awqkit_runtime.config import EngineConfig
from awqkit_runtime.engine.graph_sizes import graph_sizes
from awqkit_runtime.engine.parallel.peers import can_meet, peer_bytes
from awqkit_runtime.engine.steady_runner import tile_rows
from awqkit_runtime.engine.workspace import Workspace, decode_activations, workspace
from awqkit_runtime.kernels.paged_decode import can_decode
from awqkit_runtime.kernels.rotary import can_rotate
from awqkit_runtime.kernels.rotary_append import can_append
from awqkit_runtime.layers.placement import Placement

#: What cuBLAS, cuDNN, our kernels' shared workspace and the code of all kernels take on a GPU, once
#: they have been used. The driver's own context is not among it: it is there before memory is
#: measured.
LIBRARY_BYTES = 256 * 2**20
#: The part of it that comes with the first steps: code is loaded when it is first launched.
LATE_BYTES = 128 * 2**20
#: cuBLAS's workspace for the stream that graphs are captured on (32 MiB from sm_90 on).
_GRAPH_WORKSPACE_BYTES = 32 * 2**20
#: To the tokens, and to what the head reads where tokens are drawn.
_GRAPHS_A_SIZE = 2
#: Kernels of one layer in a decode step.
_LAYER_LAUNCHES = 12
#: What the driver keeps of each launch of a graph.
_LAUNCH_BYTES = 4 * 2**10
#: Memory that torch takes from the driver at once, at most, beyond what is asked for.
_SEGMENT_BYTES = 20 * 2**20
_INT64, _INT32, _FLOAT32 = 8, 4, 4


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """Bytes; graphs and libraries are 0 where there are none."""

    workspace: Workspace
    graphs: int
    libraries: int

    @property
    def total(self) -> int:
        return self.workspace.total + self.graphs + self.libraries


def step_memory(
    config: DecoderConfig, placement: Placement, engine: EngineConfig, *, session_len: int
) -> StepMemory:
    """For an engine with these settings, whose sessions have up to session_len tokens."""
    max_rows = engine.batch_size_for(placement.device)
    page_format = PageFormat.for_policy(config, engine.policy, placement.dtype)
    graphs = 0
    if makes_graphs(config, placement, page_format, engine):
        graph_rows = tile_rows(config) if engine.deterministic else max_rows
        graphs = graph_memory(
            *(config, placement, graph_rows, session_len),
            graphs=1 if engine.deterministic else _GRAPHS_A_SIZE * len(graph_sizes(max_rows)),
            ranks=engine.tp,
        )
    return StepMemory(
        workspace=workspace(
            config,
            placement,
            step_tokens=min(engine.prefill_tokens_for(placement.device), max_rows * session_len),
            max_batch_size=max_rows,
            session_len=session_len,
            deterministic=engine.deterministic,
            decodes_in_kernels=decodes_run_in_kernels(config, placement, page_format),
        ),
        graphs=graphs,
        libraries=LIBRARY_BYTES if placement.device.type == "cuda" else 0,
    )


def reserved(steps: StepMemory, device: torch.device) -> int:
    """Bytes that the cache leaves to the steps whatever it is asked to take.

    On a CPU none: memory that is short there is lent by the system, and sizes are not so exact.
    """
    return steps.total if device.type == "cuda" else 0


def makes_graphs(
    config: DecoderConfig, placement: Placement, page_format: PageFormat, engine: EngineConfig
) -> bool:
    """Whether decode steps run as graphs, or deterministic tiles do.

    They do where kernels compute all of attention, and the sums over ranks where there are several,
    and the host decides nothing on the way, as it does for experts.
    """
    return (
        decodes_run_in_kernels(config, placement, page_format)
        and config.experts is None
        and (engine.tp == 1 or can_meet(config.hidden_size, placement.device, engine.tp))
    )


def decodes_run_in_kernels(
    config: DecoderConfig, placement: Placement, page_format: PageFormat
) -> bool:
    """Whether kernels compute all of attention of decodes, and of deterministic tiles."""
    turned = [int(config.head_dim * rope.partial_rotary_factor) for rope in layer_ropes(config)]
    return (
        placement.uses_cuda_kernels
        and placement.fusions.rotary
        and all(can_rotate(rotary_dim, config.head_dim) for rotary_dim in turned)
        and can_append(page_format)
        and can_decode(page_format, config.num_heads)
    )


def graph_memory(
    config: DecoderConfig,
    placement: Placement,
    max_rows: int,
    session_len: int,
    *,
    graphs: int,
    ranks: int,
) -> int:
    """Of the tensors that so many graphs read and write, their pool, and what the driver keeps.

    Of several ranks each has a part that the others write into.
    """
    row = 5 * _INT64 + _INT32 * pages_for(session_len)
    row += config.hidden_size * placement.activation_dtype.itemsize
    launches = graphs * config.num_layers * _LAYER_LAUNCHES * _LAUNCH_BYTES
    pool = graph_pool_bytes(config, placement, max_rows)
    peers = peer_bytes(ranks=ranks, rows=max_rows, width=config.hidden_size) if ranks > 1 else 0
    return max_rows * row + pool + launches + peers + _GRAPH_WORKSPACE_BYTES


def graph_pool_bytes(config: DecoderConfig, placement: Placement, max_rows: int) -> int:
    """Of the intermediate results of the largest graph."""
    logits = max_rows * config.vocab_size * _logit_bytes(config, placement)
    return decode_activations(config, placement, max_rows) + logits + _SEGMENT_BYTES


def _logit_bytes(config: DecoderConfig, placement: Placement) -> int:
    """Of one logit on the way to the likeliest token: as it is, and with a cap in float32 too."""
    own = placement.activation_dtype.itemsize
    return own if config.final_softcap is None else own + 4 * _FLOAT32
