from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from awqkit.checkpoint import CheckpointError, UnsupportedModelError
from awqkit.checkpoint.packing import PACKED_FORMATS, PackedFormat
from awqkit.checkpoint.quantization_config import read_quantization, write_quantization

#: As AutoAWQ and llm-compressor write them.
AWQ = {
    "quant_method": "awq",
    "bits": 4,
    "group_size": 128,
    "zero_point": True,
    "version": "gemm",
    "modules_to_not_convert": None,
}
COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "quantization_status": "compressed",
    "global_compression_ratio": 1.9,
    "ignore": ["lm_head"],
    "kv_cache_scheme": None,
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "input_activations": None,
            "output_activations": None,
            "weights": {
                "num_bits": 4,
                "type": "int",
                "symmetric": True,
                "strategy": "group",
                "group_size": 128,
                "dynamic": False,
                "actorder": "weight",
                "observer": "minmax",
            },
        }
    },
}


def compressed(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    section = copy.deepcopy(COMPRESSED)
    change(section)
    return {"quantization_config": section}


def weights(section: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = section["config_groups"]["group_0"]["weights"]
    return found


@pytest.mark.parametrize("raw", [{}, {"quantization_config": None}, {"quantization_config": {}}])
def test_plain_checkpoints(raw: dict[str, Any]) -> None:
    assert read_quantization(raw) is None


@pytest.mark.parametrize(
    "section", [AWQ, AWQ | {"version": "GEMM"}, {"quant_method": "awq", "bits": 4}]
)
def test_awq(section: dict[str, Any]) -> None:
    found = read_quantization({"quantization_config": section})
    assert found is not None
    assert (found.format, found.optional) == ("awq", ())


@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_compressed_tensors(key: str, symmetric: bool) -> None:
    section = copy.deepcopy(COMPRESSED)
    weights(section)["symmetric"] = symmetric
    found = read_quantization({key: section})
    assert found is not None
    assert found.format == "compressed-tensors"
    assert ("weight_zero_point" in found.optional) is symmetric


@pytest.mark.parametrize("packed_format", PACKED_FORMATS)
def test_what_is_written_is_read(packed_format: PackedFormat) -> None:
    section = write_quantization(packed_format, ["model.layers.0.mlp.down_proj", "lm_head"])
    found = read_quantization({"quantization_config": section})
    assert found is not None
    assert (found.format, found.optional) == (packed_format, ())
    listed = section["modules_to_not_convert" if packed_format == "awq" else "ignore"]
    assert listed == ["model.layers.0.mlp.down_proj", "lm_head"]


@pytest.mark.parametrize("method", ["bitsandbytes", "fp8", "fbgemm_fp8", "hqq", None])
def test_other_methods_are_refused_by_name(method: str | None) -> None:
    with pytest.raises(UnsupportedModelError, match=f"{method!r}.*known are awq.*gptq"):
        read_quantization({"quantization_config": {"quant_method": method, "bits": 4}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 8}, "bits is 8"),
        ({"group_size": 64}, "group_size is 64"),
        ({"group_size": -1}, "group_size is -1"),
        ({"version": "gemv"}, "version is 'gemv'"),
        ({"version": "marlin"}, "version is 'marlin'"),
        ({"zero_point": False}, "zero_point is False"),
    ],
)
def test_other_awq_settings_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        read_quantization({"quantization_config": AWQ | change})


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}


@pytest.mark.parametrize(
    ("more", "offset"),
    [
        ({}, 1),
        ({"checkpoint_format": "gptq"}, 1),
        ({"checkpoint_format": "gptq_v2"}, 0),
        ({"format": "gptq_v2"}, 0),
    ],
)
def test_gptq_in_both_versions(more: dict[str, Any], offset: int) -> None:
    found = read_quantization({"quantization_config": GPTQ | more})
    assert found is not None
    assert (found.format, found.zero_offset) == ("gptq", offset)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 8}, "bits is 8"),
        ({"bits": 3}, "bits is 3"),
        ({"group_size": -1}, "group_size is -1"),
        ({"group_size": 32}, "group_size is 32"),
        ({"checkpoint_format": "marlin"}, "marlin"),
        ({"is_marlin_format": True}, "checkpoint_format"),
    ],
)
def test_other_gptq_settings_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        read_quantization({"quantization_config": GPTQ | change})


AUTO_ROUND = {
    "quant_method": "auto-round",
    "packing_format": "auto_round:auto_gptq",
    "bits": 4,
    "group_size": 128,
    "data_type": "int",
    "sym": True,
    "autoround_version": "0.8.0",
    "block_name_to_quantize": "model.layers",
    "extra_config": {
        "lm_head": {"bits": 4, "group_size": 128, "sym": True, "act_bits": 16},
        "model.layers.0.mlp.down_proj": {"bits": 16, "data_type": "float"},
        "model.layers.1.mlp.down_proj": {"sym": False},
    },
}


@pytest.mark.parametrize(
    ("packing", "form", "offset"),
    [
        ("auto_round:auto_gptq", "gptq", 1),
        ("auto_round:gptqmodel", "gptq", 0),
        ("auto_round:auto_awq", "awq", 0),
    ],
)
def test_auto_round_in_the_layouts_of_others(packing: str, form: str, offset: int) -> None:
    found = read_quantization({"quantization_config": AUTO_ROUND | {"packing_format": packing}})
    assert found is not None and (found.format, found.zero_offset) == (form, offset)
    assert (form == "awq") == ("g_idx" not in found.optional)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 3}, "bits is 3"),
        ({"group_size": 32}, "group_size is 32"),
        ({"data_type": "mx_fp4"}, "data_type is 'mx_fp4'"),
        ({"act_bits": 8}, "quantized activations"),
        ({"packing_format": "auto_round:exllamav2"}, "exllamav2"),
        ({"extra_config": {"lm_head": {"bits": 8}}}, "lm_head bits is 8"),
        ({"extra_config": {"lm_head": {"group_size": 64}}}, "lm_head group_size is 64"),
    ],
)
def test_other_auto_round_settings_are_refused_by_name(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        read_quantization({"quantization_config": AUTO_ROUND | change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: weights(s).update(num_bits=8), "num_bits is 8"),
        (lambda s: weights(s).update(group_size=32), "group_size is 32"),
        (lambda s: weights(s).update(strategy="channel"), "strategy is 'channel'"),
        (lambda s: weights(s).update(type="float"), "type is 'float'"),
        (lambda s: weights(s).update(actorder="group"), "actorder is 'group'"),
        (lambda s: s.update(format="marlin-24"), "format is 'marlin-24'"),
        (lambda s: s.update(format="nvfp4-pack-quantized"), "format is 'nvfp4-pack-quantized'"),
        (lambda s: s["config_groups"]["group_0"].update(format="int-quantized"), "int-quantized"),
        (
            lambda s: s["config_groups"]["group_0"].update(input_activations={"num_bits": 8}),
            "quantized activations",
        ),
        (lambda s: s.update(config_groups={}), "no groups"),
        (lambda s: s.update(transform_config={"config_groups": {"R1": {}}}), "transform_config"),
    ],
)
def test_other_compressed_settings_are_refused_by_name(
    change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        read_quantization(compressed(change))


def test_every_group_is_checked() -> None:
    def add(section: dict[str, Any]) -> None:
        second = copy.deepcopy(section["config_groups"]["group_0"])
        second["weights"]["num_bits"] = 8
        section["config_groups"]["group_1"] = second

    with pytest.raises(UnsupportedModelError, match="group_1 num_bits is 8"):
        read_quantization(compressed(add))


@pytest.mark.parametrize(
    "section", ["awq", [1], {"quant_method": "compressed-tensors", "config_groups": [1]}]
)
def test_malformed_sections(section: Any) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_quantization({"quantization_config": section})
