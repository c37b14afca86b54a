"""Compile every CUDA program for every architecture that the runtime serves; needs nvcc, no GPU."""

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from awqkit_runtime.kernels.cuda.sources import Program
from awqkit_runtime.kernels.programs import all_programs
from awqkit_runtime.kernels.w4_plan import MULTIPROCESSORS

CUDA = Path(__file__).parent / "cuda"


def main() -> int:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        print("nvcc is not on the PATH; the CUDA sources were not compiled.", file=sys.stderr)
        return 1
    work = [(program, arch) for arch in MULTIPROCESSORS for program in all_programs(arch)]
    unused = {path.stem for path in CUDA.glob("*.cu")} - {program.stem for program, _ in work}
    for stem in sorted(unused):
        print(f"{stem}.cu belongs to no program.", file=sys.stderr)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(lambda job: compiles(nvcc, *job), work))
    failures = results.count(False)
    print(
        f"{len(work)} programs from {len({program.stem for program, _ in work})} CUDA sources for "
        f"{len(MULTIPROCESSORS)} architectures, {failures} failed."
    )
    return 1 if failures or unused else 0


def compiles(nvcc: str, program: Program, arch: str) -> bool:
    defines = [f"-D{define}" for define in program.defines]
    with tempfile.TemporaryDirectory() as folder:
        target = str(Path(folder) / "kernel.cubin")
        command = [nvcc, "-cubin", f"-arch={arch}", "-std=c++17", *defines, "-o", target]
        command += ["-Werror", "all-warnings", str(CUDA / f"{program.stem}.cu")]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        print(f"{program.name} for {arch}:\n{result.stdout}{result.stderr}", file=sys.stderr)
    return result.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
