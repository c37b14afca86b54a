"""Compile every CUDA source for every architecture that the runtime serves; needs nvcc, no GPU."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ARCHITECTURES = ("sm_80", "sm_89", "sm_90a", "sm_100a")
CUDA = Path(__file__).parent / "cuda"


def main() -> int:
    sources = sorted(CUDA.glob("*.cu"))
    if not sources:
        print("No CUDA sources yet.")
        return 0
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        print("nvcc is not on the PATH; the CUDA sources were not compiled.", file=sys.stderr)
        return 1
    failures = sum(not compiles(nvcc, source, arch) for source in sources for arch in ARCHITECTURES)
    print(f"{len(sources)} CUDA sources for {len(ARCHITECTURES)} architectures, {failures} failed.")
    return 1 if failures else 0


def compiles(nvcc: str, source: Path, architecture: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "kernel.cubin"
        command = [nvcc, "-cubin", f"-arch={architecture}", "-std=c++17", "-o", str(target)]
        return subprocess.run([*command, str(source)], check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
