"""The weights of a checkpoint in the order in which a decoder is built from them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from awqkit.checkpoint import Checkpoint, PackedWeight, QuantizedWeight
from awqkit.checkpoint.canonical import layer_prefix
from awqkit.checkpoint.safetensors_file import TensorReader
from awqkit_runtime.models.device_reader import give_pinned_back, reader_for, reading_onto

#: The weights outside the layers; a tied head is absent.
_OUTER = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
#: Weights that are read ahead for a GPU, several at a time: copying out of the page cache keeps a
#: core busy for each.
_AHEAD, _THREADS = 8, 6
#: From so many bytes on no further one is begun.
_AHEAD_BYTES = 2**30

Block = dict[str, Tensor | PackedWeight]
Outer = dict[str, Tensor | QuantizedWeight | PackedWeight]


def read_layers(checkpoint: Checkpoint, device: torch.device) -> Iterator[Block]:
    """The tensors of each layer, named relative to it, 4-bit ones packed; in host memory.

    For a GPU some are read ahead. On a CPU, where they would take memory twice, none is.
    """
    layers = range(checkpoint.config.num_layers)
    if device.type == "cpu":
        yield from map(checkpoint.packed_block, layers)
        return
    pool = ThreadPoolExecutor(_THREADS)
    try:
        weights = _read_ahead(checkpoint, reader_for(device), pool)
        for layer in layers:
            yield {name: next(weights) for name in checkpoint.block_names(layer)}
    finally:
        pool.shutdown(cancel_futures=True)
        give_pinned_back(device)


def _read_ahead(
    checkpoint: Checkpoint, read: TensorReader, pool: ThreadPoolExecutor
) -> Iterator[Tensor | PackedWeight]:
    """The weights of all layers, one after the other."""
    layers = range(checkpoint.config.num_layers)
    names = deque(layer_prefix(n) + name for n in layers for name in checkpoint.block_names(n))
    reading: deque[tuple[int, Future[Tensor | PackedWeight]]] = deque()
    while names or reading:
        while names and len(reading) < _AHEAD and sum(size for size, _ in reading) < _AHEAD_BYTES:
            name = names.popleft()
            future = pool.submit(checkpoint.packed_or_dense, name, read)
            reading.append((checkpoint.stored_bytes(name), future))
        yield reading.popleft()[1].result()


@contextmanager
def outer_read_meanwhile(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype
) -> Iterator[Callable[[], Outer]]:
    """Within the block, what lies outside the layers is read for a GPU; the call waits for it.

    For a CPU the call itself reads it.
    """
    if device.type == "cpu":
        yield partial(read_outer, checkpoint, device, dtype)
        return
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(read_outer, checkpoint, device, dtype).result


def read_outer(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> Outer:
    """What lies outside the layers, dense tensors on the device, by canonical name.

    dtype: of dense matrices. They are large, so each is converted at once: in the end all of them
    would lie on the device twice, when it is fullest.
    """
    present = set(checkpoint.names())
    with reading_onto(device) as read:
        return {
            name: checkpoint.packed(name, reader_for(device))
            if checkpoint.is_quantized(name)
            else _converted(checkpoint.tensor(name, read), dtype)
            for name in _OUTER
            if name in present
        }


def _converted(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A vector is left to the norm that it belongs to."""
    return tensor.to(dtype) if tensor.dim() == 2 else tensor
