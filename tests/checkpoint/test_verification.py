"""What is written is read back before it counts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from awqkit.checkpoint import OutputError, open_checkpoint, write_checkpoint
from awqkit.checkpoint import writer as writer_module
from awqkit.checkpoint.fingerprint import fingerprint
from awqkit.checkpoint.packing import PACKED_FORMATS, PackedFormat
from awqkit.checkpoint.safetensors_file import read_header
from awqkit.checkpoint.shard_writer import ShardWriter
from awqkit.checkpoint.shards import SINGLE_FILE
from tests.checkpoint.folders import quantized_weights, random_codes
from tests.tiny_models import write_tiny_model


@pytest.mark.parametrize("field", ["codes", "scales", "zeros"])
@pytest.mark.parametrize("seed", range(5))
def test_any_single_change_gives_another_fingerprint(field: str, seed: int) -> None:
    weight = random_codes(24, 384, seed=seed)
    before = fingerprint(weight)
    values = getattr(weight, field).clone()
    generator = torch.Generator().manual_seed(seed)
    index = tuple(int(torch.randint(size, (), generator=generator)) for size in values.shape)
    values[index] = values[index] * 1.5 if field == "scales" else values[index] ^ 1
    assert fingerprint(dataclasses.replace(weight, **{field: values})) != before
    assert fingerprint(random_codes(24, 384, seed=seed)) == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dense_weights_count_by_their_bits(dtype: torch.dtype) -> None:
    weight = torch.randn(7, 33).to(dtype)
    changed = weight.clone()
    changed[3, 5] = torch.nextafter(changed[3, 5].float(), torch.tensor(9.0)) + 0.1
    assert fingerprint(changed) != fingerprint(weight)
    assert fingerprint(weight.roll(1, 0)) != fingerprint(weight)
    assert fingerprint(weight.roll(1, 1)) != fingerprint(weight)
    assert fingerprint(weight[0]) != fingerprint(weight[1])


def test_codes_that_mean_the_same_weights_have_one_fingerprint() -> None:
    weight = random_codes(8, 128, seed=3)
    negated = dataclasses.replace(weight, codes=15 - weight.codes, zeros=15 - weight.zeros)
    mirrored = dataclasses.replace(negated, scales=-negated.scales)
    assert fingerprint(mirrored) == fingerprint(weight)


@pytest.mark.parametrize("packed_format", PACKED_FORMATS)
def test_codes_that_are_packed_wrongly_are_named(
    tmp_path: Path, packed_format: PackedFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_checkpoint(write_tiny_model(tmp_path / "in", dtype=torch.bfloat16))
    weights = quantized_weights(source)
    sound, packed = writer_module.pack, []

    def pack(weight, form):
        packed.append(weight)
        tensors = sound(weight, form)
        if len(packed) == 6:
            next(iter(tensors.values()))[0, 0] ^= 1 << 13
        return tensors

    monkeypatch.setattr(writer_module, "pack", pack)
    linears = [name for name, weight in weights if not isinstance(weight, torch.Tensor)]
    with pytest.raises(OutputError, match=rf"reading it back failed: {linears[5]} reads otherwise"):
        write_checkpoint(tmp_path / "out", weights, source=source, format=packed_format)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("seed", range(6))
def test_bytes_that_the_disk_changes_are_noticed(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_checkpoint(write_tiny_model(tmp_path / "in", dtype=torch.bfloat16))
    finish = ShardWriter.finish

    def finish_and_decay(self: ShardWriter) -> None:
        finish(self)
        path = next(tmp_path.glob(".out*")) / SINGLE_FILE
        start = min(entry.start for entry in read_header(path).values())
        data = bytearray(path.read_bytes())
        data[start + int(torch.randint(len(data) - start, (), generator=generator))] ^= 0x40
        path.write_bytes(data)

    generator = torch.Generator().manual_seed(seed)
    monkeypatch.setattr(ShardWriter, "finish", finish_and_decay)
    with pytest.raises(OutputError, match="reading it back failed"):
        write_checkpoint(tmp_path / "out", quantized_weights(source), source=source, format="awq")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
