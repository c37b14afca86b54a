"""Thousands of damaged folders: an error with a cure, or the very same weights; nothing else."""

from __future__ import annotations

import json
import random
import resource
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from awqkit.checkpoint import AwqkitError, Checkpoint, open_checkpoint, write_checkpoint
from awqkit.checkpoint.fingerprint import fingerprint
from tests.checkpoint.folders import quantized_weights, write_quantized_ends
from tests.checkpoint.mutations import CONFIGS, damage
from tests.tiny_models import DENSE_FAMILIES, EXPERT_FAMILIES, write_tiny_model

FORMS = ("hf", "internlm2", "awq", "compressed-tensors", "quantized ends")
#: Far more than any of these folders needs, far less than a lie could ask for.
MOST_SECONDS, MOST_KIB = 5.0, 300 * 1024
LONGEST_PARAGRAPH = 12_000


@pytest.fixture(scope="module")
def sound_folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("fuzz")
    shape = {"dtype": torch.bfloat16, "max_shard_size": "100KB", "num_hidden_layers": 2}
    folders = {"hf": write_tiny_model(root / "hf", **shape)}
    source = open_checkpoint(folders["hf"])
    for form in ("awq", "compressed-tensors"):
        folders[form] = root / form
        weights = quantized_weights(source)
        write_checkpoint(folders[form], weights, source=source, format=form, max_shard_bytes=80_000)
    folders["quantized ends"] = write_quantized_ends(
        root / "ends", embedding_bits=8, head_bits=4, tied=False, max_shard_bytes=80_000, **shape
    )
    folders["internlm2"] = sharded(write_tiny_model(root / "internlm2", "internlm2"))
    return folders


def sharded(folder: Path) -> Path:
    """Split model.safetensors in two, with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    places = {name: f"{index % 2}.safetensors" for index, name in enumerate(names)}
    for file in set(places.values()):
        save_file({n: tensors[n] for n in names if places[n] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def values(checkpoint: Checkpoint) -> dict[str, str]:
    return {name: fingerprint(checkpoint.weight(name)) for name in checkpoint.names()}


def fuzz(sound: Path, tmp_path: Path, *, seed: int, rounds: int) -> None:
    draw = random.Random(seed)
    expected = values(open_checkpoint(sound))
    configs = {kind.__name__ for kind in CONFIGS}
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = longest = 0
    for number in range(rounds):
        folder = shutil.copytree(sound, tmp_path / "damaged")
        kind = damage(folder, draw)
        what = f"seed {seed}, round {number}: {kind}"
        start = time.monotonic()
        try:
            found = values(open_checkpoint(folder))
        except AwqkitError as error:
            refused += 1
            longest = max(longest, len(str(error)))
        except Exception as error:
            raise AssertionError(f"{what}: {type(error).__name__}") from error
        else:
            # A config may say so of fewer layers; what is read is what was stored, all the same.
            assert found.items() <= expected.items(), what
            assert kind in configs or found == expected, what
        assert time.monotonic() - start < MOST_SECONDS, what
        shutil.rmtree(folder)
    assert refused > rounds // 2
    assert longest < LONGEST_PARAGRAPH
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < MOST_KIB


@pytest.mark.parametrize("form", FORMS)
def test_damaged_folders_are_refused_or_read_rightly(sound_folders, tmp_path, form: str) -> None:
    fuzz(sound_folders[form], tmp_path, seed=1, rounds=60)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(2, 6))
def test_thousands_of_damaged_folders(sound_folders, tmp_path, form: str, seed: int) -> None:
    fuzz(sound_folders[form], tmp_path, seed=seed, rounds=700)


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted({*DENSE_FAMILIES, *EXPERT_FAMILIES} - {"llama"}))
def test_damaged_folders_of_every_family(tmp_path: Path, family: str) -> None:
    fuzz(sharded(write_tiny_model(tmp_path / "sound", family)), tmp_path, seed=11, rounds=250)
