"""Compiled kernels on disk: each under the digest of all that it was made from.

A file is the SHA-256 of its content and then the content, so that one which a crash or a full
disk cut short is seen and made anew. It is written beside its place and renamed into it: two
processes that compile at once do the work twice and harm nobody.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

_DIGEST_BYTES = 32


def cache_folder() -> Path | None:
    """The user's cache, else a folder of the user among the temporary files, else None."""
    for candidate in (_home_folder, _temporary_folder):
        with contextlib.suppress(OSError, RuntimeError):
            return candidate()
    return None


def load_or_build(folder: Path | None, name: str, build: Callable[[], bytes]) -> bytes:
    """The content kept under this name, or what build returns, which is then kept."""
    if folder is None:
        return build()
    path = folder / name
    content = _read(path)
    if content is None:
        content = build()
        # What cannot be kept is merely built again next time.
        with contextlib.suppress(OSError):
            _write(path, content)
    return content


def _read(path: Path) -> bytes | None:
    """The sound content of a file; None where there is none."""
    try:
        stored = path.read_bytes()
    except OSError:
        return None
    digest, content = stored[:_DIGEST_BYTES], stored[_DIGEST_BYTES:]
    return content if digest == hashlib.sha256(content).digest() else None


def _write(path: Path, content: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(content).digest() + content)
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise


def _home_folder() -> Path:
    folder = Path.home() / ".cache" / "awqkit" / "cuda"
    folder.mkdir(parents=True, exist_ok=True)
    _require_writable(folder)
    return folder


def _temporary_folder() -> Path:
    """Others may write beside it, so it counts only if it is this user's own."""
    folder = Path(tempfile.gettempdir()) / f"awqkit-cuda-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise PermissionError(f"{folder} belongs to others")
    _require_writable(folder)
    return folder


def _require_writable(folder: Path) -> None:
    with tempfile.TemporaryFile(dir=folder):
        pass
