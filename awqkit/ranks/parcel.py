"""A value as bytes and tensors, so that tensors travel from device to device as they are."""

from __future__ import annotations

import io
import pickle
from typing import Any

import torch
from torch import Tensor


class _Packer(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.tensors: list[Tensor] = []

    def persistent_id(self, value: Any) -> int | None:
        if not isinstance(value, Tensor):
            return None
        self.tensors.append(value)
        return len(self.tensors) - 1


class _Unpacker(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, tensors: list[Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors

    def persistent_load(self, number: int) -> Tensor:
        return self._tensors[number]


def pack(value: Any) -> tuple[bytes, list[Tensor]]:
    """The value without its tensors, and these."""
    file = io.BytesIO()
    packer = _Packer(file)
    packer.dump(value)
    return file.getvalue(), packer.tensors


def unpack(data: bytes, tensors: list[Tensor]) -> Any:
    """The inverse of `pack`. data: from a process of this very conversion."""
    return _Unpacker(io.BytesIO(data), tensors).load()


def raw_bytes(tensor: Tensor) -> Tensor:
    """The bytes of a contiguous tensor, uint8 [nbytes], in place."""
    return tensor.view(-1).view(torch.uint8)
