from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from awqkit.checkpoint import CheckpointError, open_checkpoint
from awqkit.checkpoint.hub import model_name, resolve_source


class Network:
    """Stands in for snapshot_download and remembers what it was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.answer: Path | Exception = OSError("unreachable")
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.download)

    def download(self, repo_id: str, **options: Any) -> str:
        self.calls.append((repo_id, options))
        if isinstance(self.answer, Exception):
            raise self.answer
        return str(self.answer)


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    return Network(monkeypatch)


def refusal(kind: type[RepositoryNotFoundError]) -> Exception:
    return kind.__new__(kind)


def test_folder_is_itself(tmp_path: Path, network: Network) -> None:
    assert resolve_source(tmp_path) == tmp_path
    assert resolve_source(str(tmp_path)) == tmp_path
    assert network.calls == []


def test_home_is_expanded(
    tmp_path: Path, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert resolve_source("~/model") == tmp_path / "model"


def test_file_is_refused(tmp_path: Path, network: Network) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"is a file.*name the folder"):
        resolve_source(path)


@pytest.mark.parametrize(
    "source",
    [
        "./org/model",
        "../org/model",
        "/no/such/folder",
        "~/no-such-folder-here",
        "model",
        "a/b/c",
        "existing/model",
        "org/",
        "org/mo del",
        "",
    ],
)
def test_missing_paths_need_no_network(
    tmp_path: Path, network: Network, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "existing").mkdir()
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(source)
    assert "no such folder" in str(caught.value) or "config.json" in str(caught.value)
    assert network.calls == []


def test_download_takes_no_code_and_no_pickles(tmp_path: Path, network: Network) -> None:
    network.answer = tmp_path
    assert resolve_source("org/some-model_1.5B") == tmp_path
    (repo_id, options) = network.calls[0]
    assert repo_id == "org/some-model_1.5B"
    taken = list(
        huggingface_hub.utils.filter_repo_objects(
            [
                "config.json",
                "model-00001-of-00002.safetensors",
                "model.safetensors.index.json",
                "tokenizer.model",
                "merges.txt",
                "chat_template.jinja",
                "additional_chat_templates/tool_use.jinja",
                "pytorch_model.bin",
                "model.pt",
                "consolidated.00.pth",
                "consolidated.safetensors",
                "original/params.json",
                "onnx/model.safetensors",
                "modeling_internlm2.py",
                "README.md",
            ],
            **options,
        )
    )
    assert taken == [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.model",
        "merges.txt",
        "chat_template.jinja",
        "additional_chat_templates/tool_use.jinja",
    ]


@pytest.mark.parametrize(
    "failure",
    [
        OSError("Network is unreachable"),
        LocalEntryNotFoundError("not in the cache"),
        OfflineModeIsEnabled("offline"),
        HFValidationError("bad id"),
        ConnectionError(),
    ],
)
def test_no_network_names_the_ways_out(network: Network, failure: Exception) -> None:
    network.answer = failure
    with pytest.raises(CheckpointError) as caught:
        resolve_source("org/model")
    message = str(caught.value)
    assert all(word in message for word in ("org/model", "HF_ENDPOINT", "HF_TOKEN", "local folder"))
    assert "\n" not in message


def test_unknown_repository(network: Network) -> None:
    network.answer = refusal(RepositoryNotFoundError)
    with pytest.raises(CheckpointError, match=r"no model org/model on the hub.*HF_TOKEN"):
        resolve_source("org/model")


def test_gated_repository(network: Network) -> None:
    network.answer = refusal(GatedRepoError)
    with pytest.raises(CheckpointError, match=r"gated.*HF_TOKEN"):
        resolve_source("org/model")


def test_a_model_is_called_as_its_folder_or_repository(tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "models--org--some-model" / "snapshots" / "0123abcd"
    folder.mkdir(parents=True)
    assert model_name(folder) == "some-model"
    assert model_name(tmp_path / "own" / "model") == "model"
    monkeypatch.chdir(folder.parent)
    assert model_name(Path()) == "snapshots"
