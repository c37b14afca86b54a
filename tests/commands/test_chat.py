"""The chat as a user types it, and as a script pipes it."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from awqkit_runtime import LLM, SamplingParams
from awqkit_runtime.cli import main
from tests.engine.chat_model import write_chat_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("chat"), seed=1)


def chat(model: Path, text: str, *options: str) -> Result:
    arguments = ["chat", str(model), "--device", "cpu", "--temperature", "0", *options]
    return CliRunner().invoke(main, arguments, input=text)


def answers(model: Path, *messages: str, system: str | None = None, max_tokens: int) -> list[str]:
    """What the model says to these messages, one after the other."""
    history = [] if system is None else [{"role": "system", "content": system}]
    found = []
    with LLM(model, device="cpu") as llm:
        for message in messages:
            history.append({"role": "user", "content": message})
            done = llm.chat(history, SamplingParams(max_tokens=max_tokens))
            history.append({"role": "assistant", "content": done.text})
            found.append(done.text)
    return found


def test_piped_lines_are_turns_of_one_conversation(model: Path) -> None:
    result = chat(model, "Hello\n\nAnd you?\n", "--max-tokens", "9")
    expected = answers(model, "Hello", "And you?", max_tokens=9)
    assert result.exit_code == 0
    assert result.stdout == "".join(f"{text}\n" for text in expected)
    assert ">>>" not in result.output


def test_reset_forgets_and_exit_leaves(model: Path) -> None:
    result = chat(model, "Hello\n/reset\nHello\n/exit\nnever read\n", "--max-tokens", "9")
    (expected,) = answers(model, "Hello", max_tokens=9)
    assert result.stdout == f"{expected}\n{expected}\n"
    assert "new conversation" in result.stderr
    assert result.stderr.startswith("Memory: ") and " for a cache of " in result.stderr


def test_help_and_unknown_commands_but_not_paths(model: Path) -> None:
    result = chat(model, "/help\n/rest\n/etc/hosts is what?\n", "--max-tokens", "3")
    assert "/reset" in result.stderr and "Ctrl-C" in result.stderr
    assert "no command /rest" in result.stderr
    (expected,) = answers(model, "/etc/hosts is what?", max_tokens=3)
    assert result.stdout == f"{expected}\n"


def test_a_system_message_comes_first(model: Path) -> None:
    result = chat(model, "Hello\n", "--system", "Be brief.", "--max-tokens", "9")
    (expected,) = answers(model, "Hello", system="Be brief.", max_tokens=9)
    assert result.stdout == f"{expected}\n"


def test_cut_answers_and_a_full_context_say_what_helps(model: Path) -> None:
    cut = chat(model, "Hello\n", "--max-tokens", "4", "--ignore-eos")
    assert "cut after 4 tokens; --max-tokens" in cut.stderr
    long = "lighthouse " * 20
    full = chat(model, f"Hello\n{long}\nHi\n", "--session-len", "64", "--ignore-eos")
    assert "context of 64 tokens is full; /reset" in full.stderr
    assert "the context holds 64; /reset starts a new one, --session-len" in full.stderr
    assert full.exit_code == 0


def test_sampling_options_reach_the_sampler(model: Path) -> None:
    def sampled(seed: int) -> str:
        options = ("--temperature", "1.5", "--seed", str(seed), "--max-tokens", "12")
        return chat(model, "Hello\n", *options).stdout

    assert sampled(1) == sampled(1) != sampled(2)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["/no/such/folder"], 1, "There is no such folder"),
        (
            ["MODEL", "--tp", "3"],
            1,
            "--tp is 3, but 4 attention heads and 2 key-value heads cannot be shared evenly",
        ),
        (["MODEL", "--cache-max-entry-count", "lots"], 1, "is not a size"),
        (["MODEL", "--session-len", "1000"], 1, "--session-len is 1000"),
        (["MODEL", "--top-p", "7"], 2, "top_p is 7"),
        (["MODEL", "--quant-policy", "5"], 2, "not one of"),
        (["MODEL", "--colour", "red"], 2, "No such option"),
        ([], 2, "Missing argument"),
    ],
    ids=str,
)
def test_mistakes_are_one_paragraph(
    model: Path, arguments: list[str], code: int, text: str
) -> None:
    named = [str(model) if argument == "MODEL" else argument for argument in arguments]
    result = CliRunner().invoke(main, ["chat", *named], input="Hello\n")
    assert result.exit_code == code and text in result.stderr
    assert result.stdout == "" and "Traceback" not in result.output
    if code == 1:
        assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1


def test_a_base_model_is_refused_before_the_first_message(tmp_path: Path) -> None:
    result = chat(write_chat_model(tmp_path, chat=False), "")
    assert result.exit_code == 1 and "no chat template" in result.stderr


@pytest.fixture
def terminal(model: Path) -> Iterator[Terminal]:
    opened = Terminal("chat", str(model), "--device", "cpu", "--temperature", "0", "--ignore-eos")
    yield opened
    opened.close()


class Terminal:
    """The program on a pseudo-terminal."""

    def __init__(self, *arguments: str) -> None:
        import pty

        self._master, slave = pty.openpty()
        code = "from awqkit_runtime.cli import main; main()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            cwd=ROOT,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "TERM": "dumb"},
        )
        os.close(slave)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def read_until(self, text: str, *, more: int = 0, seconds: float = 90) -> str:
        """Everything up to `text` and `more` bytes behind it."""
        seen, deadline = b"", time.monotonic() + seconds
        while text.encode() not in seen or len(seen.split(text.encode(), 1)[1]) < more:
            left = deadline - time.monotonic()
            assert left > 0 and select.select([self._master], [], [], left)[0], seen
            seen += os.read(self._master, 4096)
        return seen.decode(errors="replace")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(timeout=30)
        os.close(self._master)


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_ctrl_c_stops_the_answer_and_at_the_prompt_the_chat(terminal: Terminal) -> None:
    terminal.read_until(">>> ")
    terminal.type("Hello\n")
    terminal.read_until("Hello\r\n", more=20)
    terminal.interrupt()
    assert "(stopped)" in terminal.read_until(">>> ")
    terminal.type("/reset\n")
    assert "new conversation" in terminal.read_until(">>> ")
    # Readline prints its prompt a moment before it listens to signals.
    time.sleep(1)
    terminal.interrupt()
    assert terminal.process.wait(timeout=60) == 0
