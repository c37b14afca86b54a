from __future__ import annotations

import errno
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from awqkit.checkpoint import (
    Checkpoint,
    CheckpointError,
    OutputError,
    QuantizedWeight,
    open_checkpoint,
    write_checkpoint,
)
from awqkit.checkpoint import writer as writer_module
from awqkit.checkpoint.packing import PACKED_FORMATS, PackedFormat
from awqkit.checkpoint.shard_file import ShardFile
from tests.checkpoint.folders import edit_config, equal, quantized_weights
from tests.tiny_models import FAMILIES, write_tiny_model

Weights = list[tuple[str, Tensor | QuantizedWeight]]


def source_of(folder: Path, family: str = "llama", **overrides: Any) -> tuple[Checkpoint, Weights]:
    source = open_checkpoint(write_tiny_model(folder, family, dtype=torch.bfloat16, **overrides))
    return source, quantized_weights(source)


def contents(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("packed_format", PACKED_FORMATS)
def test_what_is_written_is_read_back(
    tmp_path: Path, packed_format: PackedFormat, family: str
) -> None:
    source, weights = source_of(tmp_path / "in", family)
    out = tmp_path / "out"
    write_checkpoint(out, iter(weights), source=source, format=packed_format)
    written = open_checkpoint(out, model_format=packed_format)
    assert written.config == source.config
    assert all(equal(written.weight(name), weight) for name, weight in weights)
    assert contents(out) - {"generation_config.json"} == {"config.json", "model.safetensors"}
    with safe_open(out / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_conversion_between_the_formats_is_lossless(tmp_path: Path) -> None:
    source, weights = source_of(tmp_path / "in", "internlm2")
    write_checkpoint(tmp_path / "awq", weights, source=source, format="awq")
    awq = open_checkpoint(tmp_path / "awq")
    stream = ((name, awq.weight(name)) for name in awq.names())
    write_checkpoint(tmp_path / "ct", stream, source=awq, format="compressed-tensors")
    compressed = open_checkpoint(tmp_path / "ct")
    stream = ((name, compressed.weight(name)) for name in compressed.names())
    write_checkpoint(tmp_path / "back", stream, source=compressed, format="awq")
    first, last = tmp_path / "awq", tmp_path / "back"
    assert (first / "model.safetensors").read_bytes() == (last / "model.safetensors").read_bytes()
    assert (first / "config.json").read_text() == (last / "config.json").read_text()


def test_internlm2_is_written_as_a_llama(tmp_path: Path) -> None:
    source, weights = source_of(tmp_path / "in", "internlm2", attention_bias=True)
    write_checkpoint(tmp_path / "out", weights, source=source, format="awq")
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    assert raw["model_type"] == "llama"
    assert raw["architectures"] == ["LlamaForCausalLM"]
    assert raw["attention_bias"] is True
    assert "auto_map" not in raw and "bias" not in raw
    names = set(open_checkpoint(tmp_path / "out").names())
    assert "model.layers.0.self_attn.o_proj.bias" in names


@pytest.mark.parametrize(
    ("packed_format", "key"), [("awq", "modules_to_not_convert"), ("compressed-tensors", "ignore")]
)
def test_dense_modules_are_listed(tmp_path: Path, packed_format: PackedFormat, key: str) -> None:
    source, weights = source_of(tmp_path / "in", intermediate_size=200)
    write_checkpoint(tmp_path / "out", weights, source=source, format=packed_format)
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    assert raw["quantization_config"][key] == [
        "model.layers.0.mlp.down_proj",
        "model.layers.1.mlp.down_proj",
        "lm_head",
    ]


def test_config_tells_the_dtype_that_was_written(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "in", dtype=torch.float32)
    source = open_checkpoint(edit_config(folder, auto_map={"AutoConfig": "x.Y"}))
    weights = quantized_weights(source, dtype=torch.bfloat16)
    write_checkpoint(tmp_path / "out", weights, source=source, format="awq")
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    assert raw["dtype"] == "bfloat16"
    assert "auto_map" not in raw
    assert open_checkpoint(tmp_path / "out").config.dtype == "bfloat16"


@pytest.mark.parametrize("packed_format", PACKED_FORMATS)
def test_shards_stay_below_their_limit(tmp_path: Path, packed_format: PackedFormat) -> None:
    source, weights = source_of(tmp_path / "in")
    out, limit = tmp_path / "out", 100_000
    write_checkpoint(out, weights, source=source, format=packed_format, max_shard_bytes=limit)
    shards = sorted(out.glob("*.safetensors"))
    assert len(shards) > 3
    assert [s.name for s in shards] == [
        f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)
    ]
    assert all(path.stat().st_size <= limit for path in shards)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    found = Counter()
    for path in shards:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                assert index["weight_map"][name] == path.name
                found[name] = file.get_tensor(name).nbytes
    assert set(found) == set(index["weight_map"])
    assert index["metadata"]["total_size"] == sum(found.values())
    written = open_checkpoint(out)
    assert written.weight_bytes() == sum(found.values())
    assert all(equal(written.weight(name), weight) for name, weight in weights)


def test_tensor_above_the_limit_gets_its_own_file(tmp_path: Path) -> None:
    source, weights = source_of(tmp_path / "in")
    write_checkpoint(tmp_path / "out", weights, source=source, format="awq", max_shard_bytes=30_000)
    written = open_checkpoint(tmp_path / "out")
    assert all(equal(written.weight(name), weight) for name, weight in weights)


def test_odd_sizes_leave_every_tensor_aligned(tmp_path: Path) -> None:
    source, weights = source_of(tmp_path / "in", "qwen3", vocab_size=321, head_dim=34)
    write_checkpoint(tmp_path / "out", weights, source=source, format="compressed-tensors")
    data = (tmp_path / "out" / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0
    widths = {"I32": 4, "I64": 8, "BF16": 2, "F16": 2}
    header = json.loads(data[8 : 8 + length])
    del header["__metadata__"]
    assert all(e["data_offsets"][0] % widths[e["dtype"]] == 0 for e in header.values())
    written = open_checkpoint(tmp_path / "out")
    assert all(equal(written.weight(name), weight) for name, weight in weights)


def test_documents_are_asked_for_after_the_weights(tmp_path: Path) -> None:
    source, weights = source_of(tmp_path / "in")
    seen: list[str] = []

    def stream() -> Iterator[tuple[str, Tensor | QuantizedWeight]]:
        for name, weight in weights:
            seen.append(name)
            yield name, weight

    def documents() -> dict[str, str]:
        return {"report.json": str(len(seen)), "note.md": "größer\n"}

    out = tmp_path / "out"
    write_checkpoint(out, stream(), source=source, format="awq", documents=documents)
    assert (out / "report.json").read_text() == str(len(weights))
    assert (out / "note.md").read_text(encoding="utf-8") == "größer\n"


def test_generation_files_are_carried(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "in", dtype=torch.bfloat16)
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 5]}')
    source = open_checkpoint(folder)
    weights = quantized_weights(source)
    write_checkpoint(tmp_path / "out", weights, source=source, format="awq")
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert written["eos_token_id"] == [2, 5]


@pytest.mark.parametrize("wrong", ["missing", "twice", "unknown", "shape"])
def test_weights_that_are_not_the_model_are_a_mistake(tmp_path: Path, wrong: str) -> None:
    source, weights = source_of(tmp_path / "in")
    name, weight = weights[3]
    changed = {
        "missing": weights[:-1],
        "twice": [*weights, weights[0]],
        "unknown": [*weights, ("model.layers.9.mlp.up_proj.weight", weight)],
        "shape": [(n, torch.ones(3) if n == name else w) for n, w in weights],
    }[wrong]
    with pytest.raises(ValueError, match="write_checkpoint"):
        write_checkpoint(tmp_path / "out", changed, source=source, format="awq")
    assert contents(tmp_path) == {"in"}


def test_failure_of_the_weights_leaves_nothing(tmp_path: Path) -> None:
    source, weights = source_of(tmp_path / "in")

    def broken() -> Iterator[tuple[str, Tensor | QuantizedWeight]]:
        yield from weights[:5]
        raise CheckpointError("the sixth weight is broken")

    with pytest.raises(CheckpointError, match="sixth"):
        write_checkpoint(tmp_path / "new" / "out", broken(), source=source, format="awq")
    assert contents(tmp_path / "new") == set()


def test_occupied_folder_stays_as_it_was(tmp_path: Path) -> None:
    source, weights = source_of(tmp_path / "in")
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    with pytest.raises(OutputError, match="already holds something"):
        write_checkpoint(out, weights, source=source, format="awq")
    assert contents(out) == {"mine.txt"}


def fail_after(monkeypatch: pytest.MonkeyPatch, calls: int, error: OSError) -> None:
    """Let the system refuse the write after some that it accepts."""
    real = ShardFile._write_bytes
    count = 0

    def write(self: Any, data: memoryview) -> None:
        nonlocal count
        count += 1
        if count > calls:
            raise error
        real(self, data)

    monkeypatch.setattr(ShardFile, "_write_bytes", write)


@pytest.mark.parametrize("calls", [0, 7, 50])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int, number: int
) -> None:
    source, weights = source_of(tmp_path / "in")
    fail_after(monkeypatch, calls, OSError(number, "No space left on device"))
    with pytest.raises(OutputError, match=r"disk is full.*Free some space") as caught:
        write_checkpoint(
            tmp_path / "out", weights, source=source, format="awq", max_shard_bytes=60_000
        )
    assert "\n" not in str(caught.value)
    assert contents(tmp_path) == {"in"}


def test_other_refusals_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, weights = source_of(tmp_path / "in")
    fail_after(monkeypatch, 3, OSError(errno.EIO, "Input/output error"))
    with pytest.raises(OutputError, match="Input/output error"):
        write_checkpoint(tmp_path / "out", weights, source=source, format="awq")
    assert contents(tmp_path) == {"in"}


def test_disk_that_is_too_small_is_named_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, weights = source_of(tmp_path / "in")
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(writer_module.shutil, "disk_usage", lambda path: usage)
    taken: list[str] = []
    stream = ((taken.append(name) or name, weight) for name, weight in weights)
    with pytest.raises(OutputError, match="needs at least"):
        write_checkpoint(tmp_path / "out", stream, source=source, format="awq")
    assert taken == []
    assert contents(tmp_path) == {"in"}
