"""The CUDA sources: where they lie, and what one compilation is made of."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

#: In an installed wheel the sources lie inside the package, in a checkout beside it.
_PACKAGE = Path(__file__).parents[2]
_FOLDERS = (_PACKAGE / "_csrc", _PACKAGE.parent / "csrc")


@dataclass(frozen=True, kw_only=True)
class Program:
    """One compilation: csrc/cuda/<stem>.cu with these macros defined."""

    stem: str
    defines: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The stem with its macros, as a file may be called."""
        return "-".join((self.stem, *(define.replace("=", "") for define in self.defines)))


@cache
def source_folder() -> Path:
    """The folder that holds layout.h and cuda/; FileNotFoundError where it was not installed."""
    for folder in _FOLDERS:
        if (folder / "cuda").is_dir():
            return folder
    raise FileNotFoundError(f"no CUDA sources in {' or '.join(map(str, _FOLDERS))}")


@cache
def read_sources() -> dict[str, bytes]:
    """Every source and header by its path inside csrc, since any may include any."""
    folder = source_folder()
    paths = [*folder.glob("*.h"), *folder.glob("cuda/**/*.cu"), *folder.glob("cuda/**/*.cuh")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(paths)}


def program_key(program: Program, options: tuple[str, ...], compiler: str) -> str:
    """Hexadecimal digest of all that decides what a program compiles to.

    compiler: its name and version. options: all flags but the folders of headers.
    """
    digest = hashlib.sha256()
    for part in (program.stem, compiler, *options, sources_digest()):
        digest.update(f"{len(part)}:{part}".encode())
    return digest.hexdigest()


@cache
def sources_digest() -> str:
    """Of all sources and headers, hexadecimal."""
    digest = hashlib.sha256()
    for path, content in read_sources().items():
        digest.update(f"{path}:{len(content)}:".encode() + content)
    return digest.hexdigest()
