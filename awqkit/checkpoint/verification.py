"""The last look at a written checkpoint: it is read as anybody will read it, and compared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from awqkit.checkpoint.errors import CheckpointError, OutputError
from awqkit.checkpoint.fingerprint import fingerprint
from awqkit.checkpoint.quantized_weight import QuantizedWeight
from awqkit.checkpoint.reader import Checkpoint, open_checkpoint


def verify_written(
    folder: Path, expected: Mapping[str, str], *, out: Path, device: torch.device
) -> None:
    """Read every weight of `folder`, dequantize it, and compare it with what was to be written.

    expected: `fingerprint` of each weight by its canonical name.  out: how errors call the folder.
    Raises OutputError that names the first weight that differs.
    """
    try:
        written = open_checkpoint(folder)
        for name in expected:
            if fingerprint(_read(written, name, device)) != expected[name]:
                raise _differs(out, f"{name} reads otherwise than it was written")
    except CheckpointError as error:
        raise _differs(out, str(error)) from error


def _read(written: Checkpoint, name: str, device: torch.device) -> Tensor | QuantizedWeight:
    if written.is_quantized(name):
        return written.packed(name).to(device).unpack()
    return written.tensor(name).to(device)


def _differs(out: Path, what: str) -> OutputError:
    return OutputError(
        f"{out} was written, but reading it back failed: {what}. Memory or disk of this machine "
        "may be failing; nothing was put in place. Run the command again, on another disk if it "
        "happens twice."
    )
