"""--embeddings: written, read, run, scored, repacked and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from awqkit import QuantConfig, quantize
from awqkit import journal as journal_module
from awqkit.checkpoint import open_checkpoint, write_checkpoint
from awqkit.checkpoint.canonical import EMBEDDING, LM_HEAD
from awqkit.cli import convert, inspect
from awqkit.errors import ConfigError, QuantizationError
from awqkit.planning import planned_bytes
from awqkit.run import Run
from awqkit_runtime import load
from tests.calibration.calibration_tokenizers import byte_tokenizer
from tests.checkpoint.folders import write_dequantized
from tests.tiny_models import write_tiny_model
from tests.tokenizer_files import write_tokenizer

BITS = {"int4": 4, "int8": 8}
SETTINGS = {"calib_samples": 9, "calib_seqlen": 32, "quality": "fast"}


def config(**settings: object) -> QuantConfig:
    given = {**SETTINGS, "format": "compressed-tensors", **settings}
    return QuantConfig(**given)  # type: ignore[arg-type]


def converted(folder: Path, *, family: str = "llama", tied: bool = False, **settings) -> Path:
    source = write_tiny_model(
        folder / "model", family, dtype=torch.bfloat16, tie_word_embeddings=tied
    )
    quantize(source, folder / "out", config(**settings), calib_dataset="self", device="cpu")
    return folder / "out"


def logits(folder: Path) -> torch.Tensor:
    tokens = torch.randint(0, 320, (2, 19), generator=torch.Generator().manual_seed(0))
    return load(folder, device="cpu", dtype="float32")(tokens)


@pytest.mark.filterwarnings("ignore:There is no kernel yet.*a head in 8 bits")
@pytest.mark.parametrize(
    ("tied", "embeddings", "head"),
    [
        (True, "int4", "dense"),
        (True, "int8", "int8"),
        (False, "int4", "int8"),
        (False, "int8", "int4"),
    ],
)
def test_what_is_written_is_what_runs(tmp_path: Path, tied: bool, embeddings: str, head: str):
    settings = {"embeddings": embeddings, "lm_head": head}
    out = converted(tmp_path, tied=tied, **settings)
    written, source = open_checkpoint(out), open_checkpoint(tmp_path / "model")
    assert written.bits(EMBEDDING) == BITS[embeddings]
    assert tied or written.bits(LM_HEAD) == BITS[head]
    stored, original = written.quantized(EMBEDDING), source.tensor(EMBEDDING).float()
    step = stored.scales.float().repeat_interleave(128, dim=1)
    assert ((stored.dequantize() - original).abs() / step).max() < 1.1
    packed = sum(written.is_quantized(name) for name in written.names())
    assert written.weight_bytes() == planned_bytes(source, config(**settings)) + 16 * packed
    expected = logits(write_dequantized(out, tmp_path / "plain"))
    assert (logits(out) - expected).norm() / expected.norm() < 1e-4


@pytest.mark.parametrize(("embeddings", "head"), [("int8", "int4"), ("int4", "int8")])
def test_the_wide_group_comes_first_and_names_its_modules(tmp_path, embeddings, head) -> None:
    """So that readers that unpack everything by the first group find too few codes, and stop."""
    out = converted(tmp_path, embeddings=embeddings, lm_head=head, evaluate=False)
    section = json.loads((out / "config.json").read_text())["quantization_config"]
    first, second = section["config_groups"].values()
    wide = "model.embed_tokens" if embeddings == "int8" else "lm_head"
    narrow = ["Linear"] if embeddings == "int8" else ["Linear", "model.embed_tokens"]
    assert (first["targets"], first["weights"]["num_bits"]) == ([wide], 8)
    assert (second["targets"], second["weights"]["num_bits"]) == (narrow, 4)
    assert section["ignore"] == []


@pytest.mark.filterwarnings("ignore:There is no kernel yet.*a head in 8 bits")
def test_the_evaluation_counts_both_matrices(tmp_path: Path) -> None:
    found = {}
    for form in ("dense", "int8", "int4"):
        folder = tmp_path / form
        source = write_tiny_model(folder / "model", dtype=torch.bfloat16, tie_word_embeddings=True)
        report = quantize(
            source, folder / "out", config(embeddings=form), calib_dataset="self", device="cpu"
        )
        assert report.evaluation is not None
        found[form] = report.evaluation
    kl = {form: evaluation.quantized.kl for form, evaluation in found.items()}
    assert kl["int4"] > 1.2 * kl["dense"]
    assert abs(kl["int8"] - kl["dense"]) < 0.1 * kl["dense"]
    # The blocks rounded to nearest have the same ends.
    assert found["int4"].nearest.kl > 1.1 * found["dense"].nearest.kl
    assert found["int4"].original.perplexity == found["dense"].original.perplexity


def test_resumed_it_has_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(embeddings="int8", lm_head="int4")
    source = write_tiny_model(tmp_path / "model", dtype=torch.bfloat16)
    quantize(source, tmp_path / "whole", settings, calib_dataset="self", device="cpu")
    monkeypatch.setattr(journal_module, "SAVING_SHARE", float("inf"))
    real = Run.next_block

    def stopping(run: Run):
        if run.blocks == 1:
            raise InterruptedError
        return real(run)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "next_block", stopping)
        with pytest.raises(InterruptedError):
            quantize(source, tmp_path / "out", settings, calib_dataset="self", device="cpu")
    quantize(source, tmp_path / "out", settings, calib_dataset="self", device="cpu", resume=True)
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"embeddings": "int4"}, "--embeddings int4 has no place in the awq form"),
        ({"embeddings": "int8", "lm_head": "int4"}, "--embeddings int8 has no place"),
        ({"lm_head": "int8"}, "--lm-head int8 has no place"),
    ],
)
def test_the_awq_form_refuses_what_its_readers_do_not_know(settings, said: str) -> None:
    with pytest.raises(ConfigError, match=f"{said}.*--format compressed-tensors"):
        config(format="awq", **settings)


@pytest.mark.parametrize(
    ("shape", "settings", "said"),
    [
        ({"vocab_size": 324}, {"embeddings": "int8"}, r"\[324, 128\].*Leave out --embeddings int8"),
        (
            {"hidden_size": 192, "head_dim": 32, "num_attention_heads": 8},
            {"embeddings": "int4"},
            r"\[320, 192\].*groups of 128 along the hidden size",
        ),
        (
            {"tie_word_embeddings": True},
            {"embeddings": "int8", "lm_head": "int4"},
            "--embeddings int4 instead of --lm-head",
        ),
    ],
)
def test_matrices_that_cannot_be_are_refused(tmp_path: Path, shape, settings, said) -> None:
    source = write_tiny_model(tmp_path / "model", dtype=torch.bfloat16, **shape)
    with pytest.raises(QuantizationError, match=said):
        quantize(source, tmp_path / "out", config(**settings), calib_dataset="self", device="cpu")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def run(command, *args: object) -> Result:
    return CliRunner().invoke(command, [str(arg) for arg in args])


def test_commands(tmp_path: Path) -> None:
    """Dry run, conversion, inspection, and what repacking refuses."""
    source = write_tiny_model(tmp_path / "model", dtype=torch.bfloat16)
    write_tokenizer(source, byte_tokenizer())
    text = ["--calib-dataset", "self", "--calib-samples", 8, "--calib-seqlen", 32]
    options = [*text, "--quality", "fast", "--no-evaluate", "--format", "compressed-tensors"]
    out, embeddings = tmp_path / "out", ["--embeddings", "int8"]
    told = run(convert, source, out, *options, *embeddings, "--dry-run")
    assert told.exit_code == 0, told.output
    assert run(convert, source, out, *options, *embeddings).exit_code == 0
    shown = run(inspect, out).stdout
    assert "embedding int8\n" in shown and "head      dense\n" in shown
    before = sorted(path.name for path in tmp_path.iterdir())
    for extra in ([], ["--dry-run"]):
        refused = run(convert, out, tmp_path / "awq", "--format", "awq", *extra)
        assert refused.exit_code == 1
        assert "stored in 8 bits" in refused.stderr
        assert "Only --format compressed-tensors" in refused.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_writer_of_the_awq_form_takes_no_packed_embedding(tmp_path: Path) -> None:
    out = converted(tmp_path, embeddings="int4", evaluate=False)
    checkpoint = open_checkpoint(out)
    weights = ((name, checkpoint.weight(name)) for name in checkpoint.names())
    with pytest.raises(ValueError, match="awq cannot hold"):
        write_checkpoint(tmp_path / "awq", weights, source=checkpoint, format="awq")
    assert not (tmp_path / "awq").exists()


def test_packed_again_in_its_own_form_it_keeps_every_byte(tmp_path: Path) -> None:
    out = converted(tmp_path, tied=True, embeddings="int8", evaluate=False)
    checkpoint, again = open_checkpoint(out), tmp_path / "again"
    weights = ((name, checkpoint.weight(name)) for name in checkpoint.names())
    write_checkpoint(again, weights, source=checkpoint, format="compressed-tensors")
    for name in ("model.safetensors", "config.json"):
        assert (again / name).read_bytes() == (out / name).read_bytes()
