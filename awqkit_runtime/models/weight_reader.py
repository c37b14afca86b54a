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
from awqkit_runtime.models.device_reader import reader_for, reading_onto

#: The weights outside the layers; a tied head is absent.
_OUTER = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
#: Layers that are read at once for a GPU: copying out of the page cache keeps a core busy for each.
_AHEAD = 4

Block = dict[str, Tensor | PackedWeight]
Outer = dict[str, Tensor | QuantizedWeight | PackedWeight]


def read_layers(checkpoint: Checkpoint, device: torch.device) -> Iterator[Block]:
    """The tensors of each layer, named relative to it, 4-bit ones packed; in host memory.

    For a GPU several layers are read ahead. On a CPU, where they would take memory twice, none is.
    """
    layers = range(checkpoint.config.num_layers)
    if device.type == "cpu":
        yield from map(checkpoint.packed_block, layers)
        return
    pool = ThreadPoolExecutor(_AHEAD)
    read = reader_for(device)
    reading: deque[Future[Block]] = deque()
    try:
        for layer in layers:
            reading.append(pool.submit(checkpoint.packed_block, layer, read))
            if len(reading) == _AHEAD:
                yield reading.popleft().result()
        while reading:
            yield reading.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def outer_read_meanwhile(
    checkpoint: Checkpoint, device: torch.device
) -> Iterator[Callable[[], Outer]]:
    """Within the block, what lies outside the layers is read for a GPU; the call waits for it.

    For a CPU the call itself reads it.
    """
    if device.type == "cpu":
        yield partial(read_outer, checkpoint, device)
        return
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(read_outer, checkpoint, device).result


def read_outer(checkpoint: Checkpoint, device: torch.device) -> Outer:
    """What lies outside the layers, dense tensors on the device, by canonical name."""
    present = set(checkpoint.names())
    with reading_onto(device) as read:
        return {
            name: checkpoint.packed(name, reader_for(device))
            if checkpoint.is_quantized(name)
            else checkpoint.tensor(name, read)
            for name in _OUTER
            if name in present
        }
