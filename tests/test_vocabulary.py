"""--lm-head: written, read, run and scored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import awqkit_runtime
from awqkit import QuantConfig, quantize
from awqkit.checkpoint import QuantizedWeight, open_checkpoint
from awqkit.checkpoint.packing import PACKED_FORMATS, PackedFormat
from awqkit.errors import QuantizationError
from awqkit.planning import planned_bytes
from awqkit.vocabulary import rounded_matrix
from tests.tiny_models import write_tiny_model

HEAD = "lm_head.weight"


def config(**settings: object) -> QuantConfig:
    sizes = {"calib_samples": 9, "calib_seqlen": 32, "quality": "fast"}
    return QuantConfig(**{**sizes, "lm_head": "int4", **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize("form", PACKED_FORMATS)
def test_head_is_written_read_and_run(tmp_path: Path, form: PackedFormat) -> None:
    source = write_tiny_model(tmp_path / "model", dtype=torch.bfloat16)
    settings, out = config(format=form), tmp_path / "out"
    quantize(source, out, settings, calib_dataset="self", device="cpu")
    written = open_checkpoint(out)
    head = written.weight(HEAD)
    assert isinstance(head, QuantizedWeight)
    original = open_checkpoint(source).tensor(HEAD).float()
    step = head.scales.float().repeat_interleave(128, dim=1)
    # A range's end lies up to half a step beyond the last level, since zero is a level.
    off = (head.dequantize() - original).abs() / step
    assert float(off.max()) < 1.1 and float(off.mean()) < 0.35
    section = json.loads((out / "config.json").read_text())["quantization_config"]
    left = section["modules_to_not_convert" if form == "awq" else "ignore"]
    assert "lm_head" not in left
    planned = planned_bytes(open_checkpoint(source), settings)
    shapes = 0 if form == "awq" else 16 * 15
    assert written.weight_bytes() == planned + shapes
    model = awqkit_runtime.load(out, device="cpu", dtype="float32")
    assert model(torch.randint(0, 320, (1, 9))).isfinite().all()


def test_runtime_computes_with_the_stored_head(tmp_path: Path) -> None:
    source = write_tiny_model(tmp_path / "model", dtype=torch.bfloat16)
    plain = config(lm_head="dense")
    quantize(source, tmp_path / "int4", config(), calib_dataset="self", device="cpu")
    quantize(source, tmp_path / "dense", plain, calib_dataset="self", device="cpu")
    ids = torch.randint(0, 320, (2, 12), generator=torch.Generator().manual_seed(0))
    both = [
        awqkit_runtime.load(tmp_path / n, device="cpu", dtype="float32") for n in ("int4", "dense")
    ]
    head = open_checkpoint(tmp_path / "int4").quantized(HEAD).dequantize()
    with torch.no_grad():
        logits = both[0](ids)
        assert (logits - both[1](ids)).abs().max() > 1e-3
    dense = open_checkpoint(tmp_path / "dense").tensor(HEAD).float()
    # Both see the same hidden states: logits differ by exactly what the heads differ by.
    hidden = torch.linalg.lstsq(dense, both[1](ids).flatten(0, 1).T).solution
    assert torch.allclose((head @ hidden).T, logits.flatten(0, 1), atol=2e-3)


def test_evaluation_counts_the_head(tmp_path: Path) -> None:
    source = write_tiny_model(tmp_path / "model", dtype=torch.bfloat16)
    kl = {}
    for form in ("dense", "int4"):
        report = quantize(
            source, tmp_path / form, config(lm_head=form), calib_dataset="self", device="cpu"
        )
        assert report.evaluation is not None
        kl[form] = report.evaluation.quantized.kl
    assert kl["int4"] > 1.1 * kl["dense"]


@pytest.mark.parametrize("bits", [4, 8])
def test_rows_are_rounded_in_parts_alike(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    head, cpu = (
        torch.randn(40, 256, generator=torch.Generator().manual_seed(1)),
        torch.device("cpu"),
    )
    whole = rounded_matrix(head, bits, cpu)
    step = whole.scales.float().repeat_interleave(128, dim=1)
    assert ((whole.dequantize() - head).abs() / step).max() < 1.1
    assert int(whole.codes.max()) == 2**bits - 1 and whole.bits == bits
    monkeypatch.setattr("awqkit.vocabulary.ROWS_AT_ONCE", 16)
    assert torch.equal(rounded_matrix(head, bits, cpu).dequantize(), whole.dequantize())


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"tie_word_embeddings": True}, "--embeddings int4 instead of --lm-head"),
        ({"vocab_size": 321}, "321"),
    ],
)
def test_heads_that_cannot_be_are_refused(tmp_path: Path, overrides, said: str) -> None:
    source = write_tiny_model(tmp_path / "model", dtype=torch.bfloat16, **overrides)
    with pytest.raises(QuantizationError, match=said):
        quantize(source, tmp_path / "out", config(), calib_dataset="self", device="cpu")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
