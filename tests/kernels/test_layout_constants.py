"""Constants that C++ and Python both need are equal on the two sides."""

from __future__ import annotations

import re
from pathlib import Path

from awqkit.checkpoint import layout
from awqkit_runtime.cache.page_format import PAGE_TOKENS
from awqkit_runtime.kernels import native, packed_w4
from awqkit_runtime.kernels.launch_plan import GpuModel
from awqkit_runtime.kernels.paged_decode_instance import instance_for
from awqkit_runtime.kernels.paged_decode_plan import plan_of

CSRC = Path(__file__).parents[2] / "csrc"


def constants(header: Path) -> dict[str, str]:
    """`constexpr T kName = value;` and `enum class T : U { kName = value }` of a header."""
    pattern = r"\b(k\w+)(?:\[\d+\])? = (\{[^}]*\}|\d+)"
    return dict(re.findall(pattern, header.read_text(encoding="utf-8")))


def test_checkpoint_and_packed_layouts() -> None:
    in_cpp = constants(CSRC / "layout.h")
    order = tuple(int(place) for place in re.findall(r"\d+", in_cpp.pop("kAwqOrder")))
    assert order == layout.AWQ_ORDER
    assert {name: int(value) for name, value in in_cpp.items()} == {
        "kBits": layout.BITS,
        "kMaxCode": layout.MAX_CODE,
        "kGroupSize": layout.GROUP_SIZE,
        "kCodesPerWord": layout.CODES_PER_WORD,
        "kBlockRows": packed_w4.BLOCK_ROWS,
        "kGroupParamBytes": packed_w4.GROUP_PARAM_BYTES,
    }


def test_library_interface() -> None:
    in_cpp = constants(CSRC / "cpu" / "abi.h")
    assert int(in_cpp["kAbiVersion"]) == native.ABI_VERSION
    isas = {"kScalar": "scalar", "kAvx2": "avx2", "kAvx512": "avx512", "kAvx512Bf16": "avx512_bf16"}
    assert {isas[name]: int(in_cpp[name]) for name in isas} == {
        name: number for number, name in enumerate(native.ISAS)
    }
    dtypes = [int(in_cpp[f"k{name}"]) for name in ("Float32", "BFloat16", "Float16")]
    assert dtypes == list(native.DTYPE_CODES.values())
    assert int(in_cpp["kOutOfMemory"]) == native.OUT_OF_MEMORY


def test_what_launches_of_decode_attention_set_aside() -> None:
    in_cuda: dict[str, str] = {}
    for part in ("format", "line", "ring"):
        in_cuda |= constants(CSRC / "cuda" / f"paged_decode_{part}.cuh")
    gpu = GpuModel(arch="sm_90a", multiprocessors=132)
    instance = instance_for(128, 8, 8, 4, gpu)
    plan = plan_of(instance, 4, gpu)
    rings = instance.warps * instance.ring_bytes
    assert plan.shape.shared_bytes == int(in_cuda["kFixedBytes"]) + rings
    warps = instance.warps * int(in_cuda["kWarpShareBytes"])
    assert plan.share_bytes == gpu.multiprocessors * (int(in_cuda["kBlockShareBytes"]) + warps)
    assert int(in_cuda["kPageTokens"]) == PAGE_TOKENS
