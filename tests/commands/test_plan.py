"""`plan` from the command line: tables, JSON, and errors of one paragraph."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from awqkit.checkpoint import open_checkpoint, write_checkpoint
from awqkit_runtime.cli import main
from awqkit_runtime.commands.plan import ARCHITECTURES
from awqkit_runtime.kernels.w4_plan import MULTIPROCESSORS
from tests.checkpoint.folders import quantized_weights
from tests.engine.tokenizers_for_tests import shared_folder
from tests.tiny_models import write_tiny_model

LARGE = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
AWQ = {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": 128, "zero_point": True}


@pytest.fixture
def config_only(tmp_path: Path) -> Path:
    return write_config(tmp_path)


def write_config(folder: Path, **changes: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(LARGE | changes))
    return folder


def plan(model: Path | str, *options: str) -> Result:
    return CliRunner().invoke(main, ["plan", str(model), *options])


def figures(model: Path | str, *options: str) -> dict[str, Any]:
    result = plan(model, "--json", *options)
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_a_config_is_enough_to_plan_for_another_card(config_only: Path) -> None:
    found = figures(config_only, "--memory", "24GiB")
    parameters = 2 * 128256 * 4096 + 65 * 4096 + 32 * 218_103_808
    assert found["weights_estimated"] and found["weight_form"] == "dense"
    assert found["plan"]["memory"] == 24 * 2**30
    assert found["plan"]["weights"] == 2 * parameters
    assert found["plan"]["pages"] == int(0.8 * found["plan"]["free"]) // (64 * 131072)
    assert found["plan"]["session_len"] == 8192


def test_rows_for_every_form_and_policy(config_only: Path) -> None:
    rows = figures(config_only, "--memory", "24GiB")["alternatives"]
    assert [(row["form"], row["quant_policy"]) for row in rows] == [
        (form, policy) for form in ("dense", "int4") for policy in (0, 8, 4, "k8v4")
    ]
    tokens = [row["plan"]["tokens"] for row in rows]
    assert tokens[0] < tokens[1] < tokens[3] < tokens[2]
    assert all(int4 > dense for dense, int4 in zip(tokens[:4], tokens[4:], strict=True))


def test_a_plan_for_each_of_two_ranks(config_only: Path) -> None:
    whole = figures(config_only, "--memory", "24GiB", "--session-len", "4096")
    half = figures(config_only, "--memory", "24GiB", "--session-len", "4096", "--tp", "2")
    shared = 2 * 32 * 218_103_808
    assert whole["plan"]["weights"] - half["plan"]["weights"] == shared // 2
    assert half["plan"]["bytes_per_token"] * 2 == whole["plan"]["bytes_per_token"]
    shown = plan(config_only, "--memory", "24GiB", "--tp", "2")
    assert "on each of 2" in shown.stdout
    assert "--tp is 3" in plan(config_only, "--memory", "24GiB", "--tp", "3").stderr


def test_int4_from_the_config_or_from_the_option(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    plain = write_config(tmp_path / "a")
    packed = write_config(tmp_path / "b", quantization_config=AWQ)
    size = ("--memory", "24GiB")
    asked, stored = figures(plain, *size, "--model-format", "awq"), figures(packed, *size)
    assert asked["weight_form"] == stored["weight_form"] == "int4"
    assert asked["plan"] == stored["plan"]
    assert stored["alternatives"] == figures(plain, *size)["alternatives"]


def test_the_tables_show_exact_bytes(config_only: Path) -> None:
    result = plan(config_only, "--memory", "24GiB", "--quant-policy", "4")
    assert result.exit_code == 0
    expected = figures(config_only, "--memory", "24GiB", "--quant-policy", "4")["plan"]
    for name in ("memory", "weights", "free", "cache", "left", "tokens", "bytes_per_token"):
        assert f"{expected[name]:,}" in result.stdout, name
    assert "--quant-policy 4" in result.stdout
    assert max(len(line) for line in result.stdout.splitlines()) <= 80


@pytest.mark.parametrize("format", ["awq", "compressed-tensors"])
def test_weights_that_are_there_are_counted(tmp_path: Path, format: Any) -> None:
    source = open_checkpoint(write_tiny_model(tmp_path / "plain", intermediate_size=320))
    write_checkpoint(tmp_path / "int4", quantized_weights(source), source=source, format=format)
    found = figures(tmp_path / "int4", "--device", "cpu")
    assert not found["weights_estimated"] and found["weight_form"] == "int4"
    assert found["device"] == "cpu"
    assert found["plan"]["sessions"] == found["plan"]["max_batch_size"] == 16
    assert figures(tmp_path / "plain", "--device", "cpu")["weight_form"] == "dense"


def test_the_real_configuration_of_a_chat_model() -> None:
    folder = shared_folder("configs/internlm2_5-7b-chat")
    found = figures(folder, "--memory", "24GiB")["plan"]
    assert (found["weights"], found["pages"]) == (15_475_417_088, 981)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--memory", "8GiB"], "weights alone"),
        (["--memory", "15.5GiB"], "--max-batch-size lower"),
        (["--memory", "24GiB", "--cache-max-entry-count", "64tok"], "(up to 64 fits)"),
        (["--memory", "lots"], "not a size"),
        (["--memory", "24"], "write the unit"),
        (["--memory", "24GiB", "--session-len", "9000"], "at most 8192"),
        (["--memory", "24GiB", "--cache-max-entry-count", "1.5"], "share in (0, 1]"),
        (["--memory", "24GiB", "--device", "tpu"], "cuda"),
    ],
)
def test_mistakes_are_one_paragraph(config_only: Path, options: list[str], text: str) -> None:
    result = plan(config_only, *options)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    assert text in result.stderr


def test_what_fits_instead_is_shown_beside_the_error(config_only: Path) -> None:
    result = plan(config_only, "--memory", "12GiB")
    assert result.exit_code == 1 and "no model" in result.stdout and "int4" in result.stdout


def test_a_cache_that_takes_all_is_warned_of(config_only: Path) -> None:
    on_cpu = ("--device", "cpu", "--memory", "24GiB")
    result = plan(config_only, *on_cpu, "--cache-max-entry-count", "1")
    assert result.exit_code == 0 and "more than there is. Lower" in result.stderr


@pytest.mark.parametrize("name", ["missing/", "file"])
def test_no_such_model(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    result = plan(tmp_path / name)
    assert result.exit_code == 1 and result.stderr.startswith("Error: ")


def test_usage_errors() -> None:
    assert CliRunner().invoke(main, ["plan"]).exit_code == 2
    assert plan("x", "--quant-policy", "5").exit_code == 2


def kernels(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["plan", "--kernels", *arguments])


def test_kernels_are_shown_without_a_model_and_without_a_gpu() -> None:
    result = kernels("--arch", "sm_80")
    assert result.exit_code == 0, result.output
    for text in ("q, k, v: 4096 → 6144", "down: 14336 → 4096", "sm_80, 108", "1…4", "mma"):
        assert text in result.stdout


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_kernels_of_a_model_cover_every_number_of_tokens(config_only: Path, arch: str) -> None:
    result = kernels(str(config_only), "--arch", arch, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["gpu"]["arch"] == arch
    shapes = [(x["out_features"], x["in_features"], x["count"]) for x in document["linears"]]
    assert shapes == [(6144, 4096, 32), (4096, 4096, 32), (28672, 4096, 32), (4096, 14336, 32)]
    for linear in document["linears"]:
        ends = [0, *(entry["last"] for entry in linear["plans"])]
        assert [entry["first"] for entry in linear["plans"]] == [end + 1 for end in ends[:-1]]


def test_kernels_know_the_same_architectures_as_the_command() -> None:
    assert tuple(MULTIPROCESSORS) == ARCHITECTURES


def test_memory_needs_a_model_and_arch_needs_kernels(config_only: Path) -> None:
    missing = CliRunner().invoke(main, ["plan"])
    assert missing.exit_code == 2 and "MODEL" in missing.output
    stray = plan(config_only, "--arch", "sm_80")
    assert stray.exit_code == 2 and "--kernels" in stray.output
