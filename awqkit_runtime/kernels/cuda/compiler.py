"""CUDA sources to machine code for one architecture, by NVRTC."""

from __future__ import annotations

import sys
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from awqkit_runtime.kernels.cuda.cache import cache_folder, load_or_build
from awqkit_runtime.kernels.cuda.sources import (
    Program,
    program_key,
    read_sources,
    source_folder,
    sources_digest,
)

_OPTIONS = ("-std=c++17", "-default-device")
#: NVRTC keeps one core busy for each program.
_PARALLEL = 8


def architecture(capability: tuple[int, int]) -> str:
    """The name to compile for: with the features of that very chip from Hopper on.

    >>> architecture((8, 9)), architecture((9, 0))
    ('sm_89', 'sm_90a')
    """
    major, minor = capability
    return f"sm_{major}{minor}" + ("a" if major >= 9 else "")


def cubin(program: Program, arch: str) -> bytes:
    """The program's machine code, from the cache or compiled now.

    RuntimeError with the compiler's messages if it cannot be compiled.
    """
    options = (f"-arch={arch}", *_OPTIONS, *(f"-D{define}" for define in program.defines))
    key = program_key(program, options, f"nvrtc {nvrtc_version()}")
    name = f"{program.name}-{arch}-{key[:32]}.cubin"
    return load_or_build(_folder(), name, lambda: _compile(program, arch, options))


def compile_programs(programs: Collection[Program], arch: str) -> None:
    """Put all of them into the cache, several at a time."""
    sources_digest()  # Once, and not by each thread.
    with ThreadPoolExecutor(_PARALLEL) as pool:
        list(pool.map(lambda program: cubin(program, arch), programs))


@cache
def nvrtc_version() -> str:
    """Of the library that CuPy finds, such as "13.0"."""
    from cupy.cuda import nvrtc

    return ".".join(map(str, nvrtc.getVersion()))


@cache
def _folder() -> Path | None:
    return cache_folder()


def _compile(program: Program, arch: str, options: tuple[str, ...]) -> bytes:
    from cupy.cuda import nvrtc

    _announce(arch)
    folder = source_folder()
    source = read_sources()[f"cuda/{program.stem}.cu"].decode()
    include = (f"-I{folder}", f"-I{folder / 'cuda'}")
    handle = nvrtc.createProgram(source, f"{program.stem}.cu", (), ())
    try:
        nvrtc.compileProgram(handle, (*options, *include))
        return nvrtc.getCUBIN(handle)
    except nvrtc.NVRTCError as error:
        log = nvrtc.getProgramLog(handle)
        raise RuntimeError(f"{program.name} for {arch}: {error}\n{log}") from error
    finally:
        nvrtc.destroyProgram(handle)


@cache
def _announce(arch: str) -> None:
    """Once a process: the user waits, and should know for what."""
    kept = _folder()
    where = "not kept: no folder is writable" if kept is None else f"kept in {kept}"
    print(
        f"Compiling CUDA kernels for {arch}, a few seconds, once ({where}) …",
        file=sys.stderr,
        flush=True,
    )
