"""quantize(): from a plain folder to an int4 folder, in both forms, and what it refuses."""

from __future__ import annotations

import gc
import json

import pytest
import torch

from awqkit import QuantConfig, quantize
from awqkit.checkpoint import open_checkpoint
from awqkit.checkpoint.layout import GROUP_SIZE
from awqkit.errors import AwqkitError, QuantizationError
from tests.tiny_models import DENSE_FAMILIES, write_tiny_model

SMALL = {"calib_samples": 9, "calib_seqlen": 32}


def small(**settings) -> QuantConfig:
    return QuantConfig(**{**SMALL, **settings})


@pytest.mark.parametrize("family", DENSE_FAMILIES)
def test_every_family_is_quantized_and_read_back(tmp_path, family: str) -> None:
    source = write_tiny_model(tmp_path / "model", family, dtype=torch.bfloat16)
    out = tmp_path / "int4"
    report = quantize(source, out, small(), calib_dataset="self", device="cpu")
    original, result = open_checkpoint(source), open_checkpoint(out)
    assert result.format == "awq"
    assert set(result.names()) == set(original.names())
    linears = [name for name in result.names() if name.endswith("_proj.weight")]
    assert linears and all(result.is_quantized(name) for name in linears)
    assert len(report.sites) == 4 * original.config.num_layers
    assert report.bytes_after < report.bytes_before
    assert report.evaluation is not None
    assert 0 < report.evaluation.quantized.kl < 1
    stored = json.loads((out / "awqkit_report.json").read_text())
    assert stored["calibration"]["digest"] == report.calibration.digest
    assert str(tmp_path) not in (out / "awqkit_report.json").read_text()


def test_both_formats_hold_the_same_integers(tmp_path) -> None:
    source = write_tiny_model(tmp_path / "model", dtype=torch.bfloat16)
    outs = {}
    for form in ("awq", "compressed-tensors"):
        out = tmp_path / form
        config = small(format=form, quality="fast", evaluate=False)
        quantize(source, out, config, calib_dataset="self", device="cpu")
        outs[form] = open_checkpoint(out)
    awq, compressed = outs.values()
    for name in awq.names():
        if awq.is_quantized(name):
            ours, theirs = awq.quantized(name), compressed.quantized(name)
            assert torch.equal(ours.codes, theirs.codes)
            assert torch.equal(ours.scales, theirs.scales)
            assert torch.equal(ours.zeros, theirs.zeros)
        else:
            assert torch.equal(awq.tensor(name), compressed.tensor(name))


def test_same_seed_gives_the_same_bytes_and_another_seed_does_not(tmp_path) -> None:
    source = write_tiny_model(tmp_path / "model", dtype=torch.bfloat16)
    digests = []
    for run, seed in enumerate((5, 5, 6)):
        out = tmp_path / str(run)
        config = small(seed=seed, quality="fast", evaluate=False)
        report = quantize(source, out, config, calib_dataset="self", device="cpu")
        digests.append((report.calibration.digest, (out / "model.safetensors").read_bytes()))
    assert digests[0] == digests[1]
    assert digests[0][0] != digests[2][0]


def test_widths_that_groups_do_not_divide_stay_unquantized_and_are_reported(tmp_path) -> None:
    source = write_tiny_model(tmp_path / "model", intermediate_size=192, dtype=torch.bfloat16)
    report = quantize(source, tmp_path / "out", small(), calib_dataset="self", device="cpu")
    assert report.unquantized == (
        "model.layers.0.mlp.down_proj",
        "model.layers.1.mlp.down_proj",
    )
    result = open_checkpoint(tmp_path / "out")
    assert not result.is_quantized("model.layers.0.mlp.down_proj.weight")
    assert result.is_quantized("model.layers.0.mlp.up_proj.weight")
    assert 192 % GROUP_SIZE


@pytest.mark.parametrize("quality", ["fast", "balanced"])
def test_search_lowers_the_error_on_structured_activations(tmp_path, quality: str) -> None:
    """Loud channels are what AWQ is for; on them it must beat rounding to nearest."""
    source = write_tiny_model(tmp_path / "model", dtype=torch.float32)
    checkpoint = open_checkpoint(source)
    from safetensors.torch import load_file, save_file

    tensors = load_file(source / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith("layernorm.weight"):
            tensor[::16] *= 12
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    report = quantize(
        source, tmp_path / "out", small(quality=quality), calib_dataset="self", device="cpu"
    )
    assert report.evaluation is not None
    assert report.evaluation.quantized.kl < report.evaluation.nearest.kl
    assert any(site.scale != "identity" for site in report.sites)
    assert checkpoint.config.num_layers == 2


def test_fold_that_changes_the_block_is_refused_and_nothing_is_written(
    tmp_path, monkeypatch
) -> None:
    import awqkit.half_quantizer as half_quantizer

    sound = half_quantizer.fold

    def unsound(block, site, config, scale):
        return sound(block, site, config, scale) | {
            f"{site.feeder}.weight": block[f"{site.feeder}.weight"] * 1.1
        }

    monkeypatch.setattr(half_quantizer, "fold", unsound)
    source = write_tiny_model(tmp_path / "model", dtype=torch.bfloat16)
    with pytest.raises(QuantizationError, match="folding"):
        quantize(source, tmp_path / "out", small(), calib_dataset="self", device="cpu")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"w_bits": 8}, "4-bit"),
        ({"w_group_size": 64}, "groups of 128"),
        ({"quality": "perfect"}, "fast, balanced"),
        ({"calib_samples": 0}, "at least 1"),
    ],
)
def test_settings_that_nothing_can_do_are_refused(settings, text) -> None:
    with pytest.raises(AwqkitError, match=text):
        QuantConfig(**settings)


def test_a_quantized_model_and_one_without_fitting_widths_are_refused(tmp_path) -> None:
    source = write_tiny_model(tmp_path / "model", dtype=torch.bfloat16)
    quantize(source, tmp_path / "int4", small(), calib_dataset="self", device="cpu")
    with pytest.raises(QuantizationError, match="quantized already"):
        quantize(tmp_path / "int4", tmp_path / "again", small(), calib_dataset="self")
    narrow = write_tiny_model(
        tmp_path / "narrow", hidden_size=64, intermediate_size=96, head_dim=16
    )
    with pytest.raises(QuantizationError, match="no linear"):
        quantize(narrow, tmp_path / "out", small(), calib_dataset="self")


def test_rows_longer_than_the_model_are_refused_with_its_maximum(tmp_path) -> None:
    source = write_tiny_model(tmp_path / "model")
    with pytest.raises(AwqkitError, match="512"):
        quantize(source, tmp_path / "out", small(calib_seqlen=513), calib_dataset="self")


def test_silent_channels_and_zero_weights_have_an_outcome(tmp_path) -> None:
    source = write_tiny_model(tmp_path / "model", dtype=torch.bfloat16)
    from safetensors.torch import load_file, save_file

    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.0.input_layernorm.weight"][:40] = 0
    tensors["model.layers.0.mlp.up_proj.weight"][5] = 0
    tensors["model.layers.1.self_attn.v_proj.weight"].zero_()
    tensors["model.layers.1.mlp.down_proj.weight"][:, :128] = 0
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    report = quantize(source, tmp_path / "out", small(), calib_dataset="self", device="cpu")
    result = open_checkpoint(tmp_path / "out")
    for name in result.names():
        weight = result.weight(name)
        dense = weight if isinstance(weight, torch.Tensor) else weight.dequantize()
        assert dense.isfinite().all(), name
    assert report.evaluation is not None and report.evaluation.quantized.kl < 1


@pytest.mark.parametrize("quality", ["fast", "balanced"])
def test_the_rows_go_when_a_conversion_ends(tmp_path, quality: str) -> None:
    """Gigabytes that only a search for cycles would free are in the way of what comes next."""
    source = write_tiny_model(tmp_path / "model", dtype=torch.bfloat16)
    gc.collect()
    gc.disable()
    try:
        before = set(map(id, _tensors()))
        quantize(
            source, tmp_path / "out", small(quality=quality), calib_dataset="self", device="cpu"
        )
        left = [tensor for tensor in _tensors() if id(tensor) not in before]
    finally:
        gc.enable()
    assert not [tensor.shape for tensor in left if tensor.dim() == 3]


def _tensors() -> list[torch.Tensor]:
    return [found for found in gc.get_objects() if type(found) is torch.Tensor]
