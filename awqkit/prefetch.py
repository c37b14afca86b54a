"""Dense blocks from disk to the device, the next one while this one is worked on."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from awqkit.checkpoint import Checkpoint
from awqkit.checkpoint.canonical import layer_prefix
from awqkit.device import choose_gpu


class BlockReader:
    """On a CPU every core computes, so that nothing is read ahead there."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        self._checkpoint = checkpoint
        self._device = device
        self._thread = (
            ThreadPoolExecutor(1, initializer=choose_gpu, initargs=(device,))
            if device.type == "cuda"
            else None
        )
        self._ahead: dict[int, Future[dict[str, Tensor]]] = {}

    def read(self, layer: int) -> dict[str, Tensor]:
        """A block's tensors on the device, in their stored dtypes, named relative to the layer.

        Raises CheckpointError where one is damaged.
        """
        if self._thread is None:
            return self._on_host(layer)
        if layer not in self._ahead:
            self._ahead[layer] = self._thread.submit(self._on_host, layer)
        weights = self._ahead.pop(layer).result()
        if layer + 1 < self._checkpoint.config.num_layers:
            self._ahead[layer + 1] = self._thread.submit(self._on_host, layer + 1)
        return {
            name: tensor.to(self._device, non_blocking=True) for name, tensor in weights.items()
        }

    def _on_host(self, layer: int) -> dict[str, Tensor]:
        """Where it goes on to a GPU, in memory that its copy engine reads by itself."""
        prefix = layer_prefix(layer)
        names = [name for name in self._checkpoint.names() if name.startswith(prefix)]
        return {name.removeprefix(prefix): self._read(name) for name in names}

    def _read(self, name: str) -> Tensor:
        tensor = self._checkpoint.tensor(name)
        return tensor if self._thread is None else tensor.pin_memory()
