"""The last look at a written checkpoint: it is read as anybody will read it, and compared."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from awqkit.checkpoint.errors import CheckpointError, OutputError
from awqkit.checkpoint.fingerprint import fingerprint
from awqkit.checkpoint.packed_weight import PackedWeight
from awqkit.checkpoint.quantized_weight import QuantizedWeight
from awqkit.checkpoint.reader import Checkpoint, open_checkpoint

#: Weights that are read at once.
READERS = 2


def verify_written(
    folder: Path, expected: Mapping[str, str], *, out: Path, device: torch.device
) -> None:
    """Read every weight of `folder`, dequantize it, and compare it with what was to be written.

    expected: `fingerprint` of each weight by its canonical name.  out: how errors call the folder.
    Raises OutputError that names the first weight that differs.
    """
    try:
        written = open_checkpoint(folder)
        for name, weight in _read_ahead(written, expected):
            if fingerprint(_on_device(weight, device)) != expected[name]:
                raise _differs(out, f"{name} reads otherwise than it was written")
    except CheckpointError as error:
        raise _differs(out, str(error)) from error


def _read_ahead(
    written: Checkpoint, names: Iterable[str]
) -> Iterator[tuple[str, Tensor | PackedWeight]]:
    """The weights by name, the next ones read while this one is compared."""

    def read(name: str) -> tuple[str, Tensor | PackedWeight]:
        return name, written.packed(name) if written.is_quantized(name) else written.tensor(name)

    with ThreadPoolExecutor(READERS) as threads:
        ahead: deque[Future[tuple[str, Tensor | PackedWeight]]] = deque()
        for name in names:
            ahead.append(threads.submit(read, name))
            if len(ahead) > READERS:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _on_device(weight: Tensor | PackedWeight, device: torch.device) -> Tensor | QuantizedWeight:
    return weight.to(device).unpack() if isinstance(weight, PackedWeight) else weight.to(device)


def _differs(out: Path, what: str) -> OutputError:
    return OutputError(
        f"{out} was written, but reading it back failed: {what}. Memory or disk of this machine "
        "may be failing; nothing was put in place. Run the command again, on another disk if it "
        "happens twice."
    )
