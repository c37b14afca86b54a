"""The numbers of docs/memory.md, computed from the shapes that the page names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from awqkit_runtime.cli import main
from awqkit_runtime.config import EngineConfig
from awqkit_runtime.engine.plan import DoesNotFit, MemoryPlan, plan_memory
from awqkit_runtime.model_size import ModelSize, place, read_model_size
from awqkit_runtime.room import find_room
from tests.docs.blocks import ROOT, blocks

PAGE = "docs/memory.md"
GIB = 2**30
SHAPES = {
    "1.8B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "heads": 16},
    "7B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "heads": 32},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with nothing but a config.json each."""
    found = {}
    for name, shape in SHAPES.items():
        folder = found[name] = tmp_path_factory.mktemp("config") / name
        folder.mkdir()
        config = {
            "model_type": "internlm2",
            "architectures": ["InternLM2ForCausalLM"],
            "num_attention_heads": shape["heads"],
            "num_key_value_heads": 8,
            "vocab_size": 92544,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e6,
            "rope_scaling": {"type": "dynamic", "factor": 2.0},
            "hidden_act": "silu",
            "bias": False,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
        } | {key: value for key, value in shape.items() if key != "heads"}
        (folder / "config.json").write_text(json.dumps(config))
    return found


def plan(size: ModelSize, **settings: object) -> MemoryPlan | None:
    """On a card of 24 GiB; None where no session fits."""
    engine = EngineConfig(**settings)  # type: ignore[arg-type]
    room = find_room("24GiB", engine)
    placement = place(size.config, engine, room.device)
    try:
        return plan_memory(
            size.config,
            weights=size.weights(placement),
            memory=room.memory,
            engine=engine,
            placement=placement,
        )
    except DoesNotFit:
        return None


def forms(folder: Path) -> Iterator[tuple[str, ModelSize]]:
    dense = read_model_size(folder)
    yield "BF16", dense
    yield "W4A16", dense.other_form()


def cache_rows(folder: Path) -> Iterator[str]:
    for name, size in forms(folder):
        for policy, kind in ((0, "BF16"), (8, "int8"), (4, "int4")):
            cells = [name, kind]
            for share in (0.8, 0.4):
                found = plan(size, quant_policy=policy, cache_max_entry_count=share)
                if found is None:
                    cells += ["–", "–"]
                else:
                    cells += [f"{found.cache / GIB:.2f}", f"{found.tokens:,}"]
            yield "| " + " | ".join(cells) + " |"


def sum_rows(name: str, folder: Path) -> Iterator[str]:
    for form, size in forms(folder):
        for share in (0.8, 0.4):
            found = plan(size, quant_policy=4, cache_max_entry_count=share)
            assert found is not None
            parts = (found.weights, found.cache, found.workspace.total, found.left)
            cells = [f"{name}, {form}", f"{share:g}", *(f"{part / GIB:.2f}" for part in parts)]
            yield "| " + " | ".join(cells) + " |"


@pytest.mark.parametrize("name", SHAPES)
def test_what_a_card_holds(folders: dict[str, Path], name: str) -> None:
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    for row in (*cache_rows(folders[name]), *sum_rows(name, folders[name])):
        assert row in text, row


@pytest.mark.parametrize("name", SHAPES)
def test_why_the_weights_are_more_than_a_quarter(folders: dict[str, Path], name: str) -> None:
    """Linears of the layers in four bits with their parameters; embedding, head and norms dense."""
    size = read_model_size(folders[name])
    config = size.config
    ends = 2 * config.vocab_size * config.hidden_size
    attention = config.hidden_size * (2 * config.q_size + 2 * config.kv_size)
    linears = config.num_layers * (attention + 3 * config.hidden_size * config.intermediate_size)
    norms = (2 * config.num_layers + 1) * config.hidden_size
    # A group on disk: 128 codes, an FP16 scale, a zero point of four bits; in a GPU's memory the
    # zero point takes two bytes.
    disk, loaded = (linears // 128 * (64 + 2 + zero) for zero in (0.5, 2))
    placement = place(config, EngineConfig(), find_room("24GiB", EngineConfig()).device)
    assert size.other_form().weights(placement) == loaded + 2 * (ends + norms)
    dense = 2 * (linears + ends + norms)
    assert size.weights(placement) == dense
    figures = (dense, dense / 4, 2 * ends, disk, disk + 2 * (ends + norms))
    row = f"| {name} | " + " | ".join(f"{figure / 1e9:.2f}" for figure in figures) + " |"
    assert row in (ROOT / PAGE).read_text(encoding="utf-8"), row


def test_the_output_is_the_commands_own(folders: dict[str, Path]) -> None:
    command, output = (block.text for block in blocks(PAGE)[:2])
    words = command.replace("FOLDER", str(folders["7B"])).split()
    assert words[0] == "awqkit-runtime"
    result = CliRunner().invoke(main, words[1:], env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.stderr
    shown = [line.rstrip() for line in result.stdout.strip().splitlines()]
    assert [line.rstrip() for line in output.strip().splitlines()] == shown
