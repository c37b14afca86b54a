"""What a conversion's result depends on: only where all of it is equal may one be resumed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from awqkit.checkpoint import Checkpoint
from awqkit.checkpoint.config_file import CONFIG_FILE
from awqkit.checkpoint.safetensors_file import StoredTensor
from awqkit.checkpoint.shards import INDEX_FILE
from awqkit.config import QuantConfig
from awqkit.errors import ResumeError
from awqkit.version import VERSION

#: Bytes from the middle of each tensor that count besides the headers: another training of the same
#: model has the same headers and sizes.
SAMPLE_BYTES = 4096


def run_identity(
    checkpoint: Checkpoint,
    config: QuantConfig,
    *,
    calib_dataset: str,
    devices: Sequence[torch.device],
) -> dict[str, Any]:
    """Everything that the bytes of the result depend on, but the calibration text, by its name.

    Versions, kinds of devices and the number of CPU threads count, since sums may round otherwise
    with them; how many processes share the rows does not.
    """
    options = {f"--{name.replace('_', '-')}": value for name, value in asdict(config).items()}
    source = {f"the source's {name}": digest for name, digest in source_digests(checkpoint).items()}
    return {
        "the version of awqkit": VERSION,
        "the version of torch": torch.__version__,
        "the device": ", ".join(sorted(set(map(_device_name, devices)))),
        "the model's name": checkpoint.name,
        "--calib-dataset": _absolute(calib_dataset),
        **options,
        **source,
    }


def require_same(before: Mapping[str, Any], now: Mapping[str, Any], *, folder: Path) -> None:
    """Raise ResumeError that names what differs from what the conversion in `folder` began with."""
    changed = [
        _difference(name, before.get(name), now.get(name))
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    ]
    if changed:
        raise ResumeError(
            f"The interrupted conversion in {folder} cannot be resumed by this command, since "
            f"{'; '.join(changed)}. Give what was given then, or begin anew with --no-resume."
        )


def source_digests(checkpoint: Checkpoint) -> dict[str, str]:
    """SHA-256 by file name: of config and index as they are, of weights as header and samples."""
    digests = {
        name: hashlib.sha256((checkpoint.folder / name).read_bytes()).hexdigest()
        for name in (CONFIG_FILE, INDEX_FILE)
        if (checkpoint.folder / name).is_file()
    }
    by_file: dict[Path, list[StoredTensor]] = {}
    for entry in checkpoint.stored_tensors():
        by_file.setdefault(entry.path, []).append(entry)
    return digests | {path.name: _weights_digest(path, by_file[path]) for path in sorted(by_file)}


def _weights_digest(path: Path, entries: list[StoredTensor]) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for entry in sorted(entries, key=lambda entry: (entry.start, entry.name)):
            claim = (entry.name, entry.dtype, entry.shape, entry.start, entry.stop)
            digest.update(repr(claim).encode())
            file.seek(max(entry.start, (entry.start + entry.stop - SAMPLE_BYTES) // 2))
            digest.update(file.read(min(SAMPLE_BYTES, entry.nbytes)))
    return digest.hexdigest()


def _device_name(device: torch.device) -> str:
    if device.type == "cpu":
        return f"CPU, {torch.get_num_threads()} threads"
    return torch.cuda.get_device_name(device)


def _absolute(dataset: str) -> str:
    path = Path(dataset).expanduser()
    return str(path.resolve()) if path.is_file() else dataset


def _difference(name: str, before: Any, now: Any) -> str:
    if name.startswith("the source's "):
        return f"{name} is another one now"
    return f"{name} was {before!r} and is {now!r} now"
