"""Loading of an engine: the tokenizer is read before the weights, and either may be damaged."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from awqkit_runtime.config import EngineConfig
from awqkit_runtime.engine import loading
from awqkit_runtime.engine.loading import load_engine
from awqkit_runtime.errors import CheckpointError
from tests.engine.chat_model import write_chat_model

CONFIG = EngineConfig(device="cpu", cache_max_entry_count="128tok", session_len=64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("chat"))


def test_a_damaged_tokenizer_is_told_before_weights_are_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = write_chat_model(tmp_path)
    (damaged / "tokenizer.json").write_text('{"version": "1.0"')

    def refuse(*arguments: Any, **settings: Any) -> None:
        raise AssertionError("weights were read")

    with monkeypatch.context() as patch:
        patch.setattr(loading, "load_decoder", refuse)
        with pytest.raises(CheckpointError, match=r"tokenizer\.json is no tokenizer"):
            load_engine(damaged, CONFIG)
    engine, text = load_engine(folder, CONFIG)
    assert text.tokenizer is not None and not engine.has_unfinished()


@pytest.mark.parametrize("error", [CheckpointError("cut short"), KeyboardInterrupt()])
def test_what_ends_the_plan_ends_the_loading(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """However long the tokenizer takes, nothing of it goes on behind."""
    read, failed = loading.read_tokenizer, threading.Event()

    def late(*arguments: Any) -> Any:
        assert failed.wait(60)
        return read(*arguments)

    def fail(*arguments: Any, **settings: Any) -> None:
        failed.set()
        raise error

    monkeypatch.setattr(loading, "read_tokenizer", late)
    monkeypatch.setattr(loading, "plan_engine", fail)
    threads = threading.active_count()
    with pytest.raises(type(error)):
        load_engine(folder, CONFIG)
    assert threading.active_count() == threads
