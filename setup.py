"""Builds the CPU kernels of csrc/cpu into one plain shared library; the rest is in pyproject.toml.

Each instruction set has its own sources and flags; which variant runs is decided when the library
is loaded. Without a working compiler the installation still succeeds: awqkit then computes in
torch, slowly, and this file says so.
"""

import os
import platform
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError, ExecError, LinkError

ROOT = Path(__file__).parent
SOURCES = "csrc/cpu"
LIBRARY = "awqkit_runtime.kernels._cpu"

COMMON_FLAGS = ["-std=c++17", "-O3", "-g0", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
AVX2_FLAGS = ["-mavx2", "-mfma", "-mf16c"]
# GCC 12 takes its own AVX-512 headers for uninitialised reads; Clang does not know that warning.
QUIET = ["-Wno-unknown-warning-option", "-Wno-maybe-uninitialized"]
AVX512_FLAGS = [*AVX2_FLAGS, "-mavx512f", "-mavx512bw", "-mavx512vl", *QUIET]
PORTABLE = ["isa.cpp", "w4_linear.cpp", "w4_linear_scalar.cpp"]
X86_VARIANTS = {
    "w4_linear_avx2.cpp": AVX2_FLAGS,
    "w4_linear_avx512.cpp": AVX512_FLAGS,
    "w4_linear_avx512_bf16.cpp": [*AVX512_FLAGS, "-mavx512bf16"],
}


def flags_by_source() -> dict[str, list[str]]:
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return dict.fromkeys(PORTABLE, COMMON_FLAGS)
    flags = [*COMMON_FLAGS, "-DAWQKIT_X86_VARIANTS"]
    variants = {name: flags + extra for name, extra in X86_VARIANTS.items()}
    return dict.fromkeys(PORTABLE, flags) | variants


class BuildKernels(build_ext):
    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"  # plain C, of no particular Python

    def build_extension(self, ext: Extension) -> None:
        try:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                objects = list(pool.map(self.compile_source, flags_by_source().items()))
            self.compiler.link_shared_object(
                objects, self.get_ext_fullpath(ext.name), target_lang="c++"
            )
        except (CompileError, ExecError, LinkError):
            self.warn(
                "the CPU kernels were not built: the compiler failed as shown above. awqkit works "
                "without them, but 4-bit models run many times slower. Install a C++17 compiler "
                "(g++ or clang++, or name one in CXX) and install awqkit again."
            )

    def compile_source(self, source_and_flags: tuple[str, list[str]]) -> str:
        source, flags = source_and_flags
        [compiled] = self.compiler.compile(
            [f"{SOURCES}/{source}"], output_dir=self.build_temp, extra_postargs=flags
        )
        return compiled


class CopySources(build_py):
    """Puts csrc/ into the wheel: CUDA kernels are compiled from it when they are first used."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "awqkit_runtime", "_csrc")
            scripts = shutil.ignore_patterns("*.py", "__pycache__")
            shutil.copytree(ROOT / "csrc", target, ignore=scripts, dirs_exist_ok=True)


setup(
    ext_modules=[
        Extension(
            LIBRARY,
            sources=[f"{SOURCES}/{name}" for name in flags_by_source()],
            depends=[str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/**/*.h")],
            language="c++",
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildKernels, "build_py": CopySources},
)
