"""One prompt in, one answer out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from awqkit_runtime import LLM, SamplingParams
from awqkit_runtime.cli import main
from awqkit_runtime.config import EngineConfig
from awqkit_runtime.engine.sampling_params import SamplingParams as Defaults
from tests.engine.chat_model import write_chat_model
from tests.engine.tokenizers_for_tests import shared_folder

MESSAGE = "The old lighthouse"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("chat"), wishes={"do_sample": False})


def generate(model: Path, *options: str, text: str | None = None) -> Result:
    return CliRunner().invoke(main, ["generate", str(model), *options], input=text)


@pytest.fixture(scope="module")
def raw(model: Path) -> str:
    with LLM(model, device="cpu") as llm:
        return llm.generate(MESSAGE, SamplingParams(max_tokens=8))[0].text


@pytest.fixture(scope="module")
def chatted(model: Path) -> str:
    with LLM(model, device="cpu") as llm:
        message = {"role": "user", "content": MESSAGE}
        return str(llm.chat([message], SamplingParams(max_tokens=8)).text)


def test_raw_continues_and_chat_answers(model: Path, raw: str, chatted: str) -> None:
    for options, expected in [(["--raw"], raw), (["--chat"], chatted), ([], chatted)]:
        result = generate(model, "-p", MESSAGE, "--max-tokens", "8", *options)
        assert (result.exit_code, result.stdout) == (0, f"{expected}\n")
    assert raw != chatted


def test_standard_input_is_the_prompt(model: Path, raw: str) -> None:
    result = generate(model, "--raw", "--max-tokens", "8", text=f"{MESSAGE}\n")
    assert result.stdout == f"{raw}\n"


def test_a_model_without_template_continues(tmp_path: Path) -> None:
    base = write_chat_model(tmp_path, chat=False)
    assert generate(base, "-p", MESSAGE, "--max-tokens", "3").exit_code == 0
    refused = generate(base, "-p", MESSAGE, "--chat")
    assert refused.exit_code == 1 and "no chat template" in refused.stderr


@pytest.mark.parametrize("policy", ["0", "8", "4", "k8v4"])
def test_a_real_model_tells_its_story(policy: str) -> None:
    folder = shared_folder("models/stories260k")
    expected = json.loads((folder / "expected_greedy.json").read_text())
    options = ["--max-tokens", str(expected["greedy_tokens"]), "--quant-policy", policy]
    result = generate(folder, "-p", "", "--device", "cpu", *options)
    assert result.exit_code == 0
    if policy == "0":
        assert result.stdout == f"{expected['text']}\n"
    assert result.stdout.startswith("Once upon a time")


def test_mistakes_are_one_paragraph(model: Path) -> None:
    for arguments, code, text in [
        ((model, "-p", "x" * 3000, "--raw"), 1, "session length"),
        ((model, "-p", MESSAGE, "--temperature", "-1"), 2, "temperature is -1"),
        ((model / "config.json", "-p", MESSAGE), 1, "is a file"),
    ]:
        result = generate(Path(arguments[0]), *map(str, arguments[1:]))
        assert result.exit_code == code and text in result.stderr, result.output
        assert "Traceback" not in result.output and result.stdout == ""


def test_help_shows_the_defaults_of_the_dataclasses() -> None:
    shown = " ".join(CliRunner().invoke(main, ["generate", "--help"]).output.split())
    for default in (
        EngineConfig.cache_max_entry_count,
        Defaults.max_tokens,
    ):
        assert f"[default: {default}" in shown
