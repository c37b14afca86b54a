"""Tokenizer files of a written checkpoint: whole, without remote code, the same ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from awqkit.checkpoint.errors import CheckpointError
from awqkit.checkpoint.tokenizer import (
    carry_tokenizer,
    encode_prompt,
    load_tokenizer,
    render_chat,
    stop_token_ids,
)
from tests.checkpoint.sentencepiece_models import HARD_TEXTS
from tests.checkpoint.tokenizer_folders import (
    REMOTE_CODE,
    TURN_TEMPLATE,
    internlm2_shaped_model,
    tiny_config,
    write_fast_folder,
    write_json,
    write_reserving_folder,
    write_sentencepiece_folder,
)

CONFIG = tiny_config(bos_token_id=1, eos_token_ids=(2,), pad_token_id=2)


def carried(source: Path, out: Path, **files: Any) -> Path:
    for name, document in files.items():
        write_json(source / f"{name}.json", document)
    out.mkdir()
    carry_tokenizer(source, out, CONFIG)
    return out


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def require_same(source: Path, out: Path) -> None:
    """The carried folder gives the same ids, here and in transformers' own loading."""
    from transformers import AutoTokenizer

    # An engine finds a Llama next to the tokenizer, whatever the source was.
    write_json(out / "config.json", {"model_type": "llama"})
    ours, again = load_tokenizer(source), load_tokenizer(out)
    theirs = AutoTokenizer.from_pretrained(out)
    for text in (*HARD_TEXTS, "<|im_start|>user\nhi<|im_end|>"):
        ids = encode_prompt(ours, text)
        assert encode_prompt(again, text) == ids
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids) == ours.decode(ids)
    assert theirs.chat_template == ours.chat_template
    assert theirs.special_tokens_map == ours.named_tokens


def test_a_fast_tokenizer_is_copied(tmp_path: Path) -> None:
    source = write_fast_folder(tmp_path / "in", bos="<|begin|>", chat_template=TURN_TEMPLATE)
    generation = {"eos_token_id": 3, "top_p": 0.8}
    out = carried(
        source,
        tmp_path / "out",
        generation_config=generation,
        special_tokens_map={"bos_token": "<|begin|>"},
        vocab={"a": 0},
    )
    for name in ("tokenizer.json", "special_tokens_map.json", "vocab.json"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    assert read(out / "tokenizer_config.json") == read(source / "tokenizer_config.json")
    assert read(out / "generation_config.json") == generation
    require_same(source, out)


def test_a_sentencepiece_folder_gets_a_fast_tokenizer(tmp_path: Path) -> None:
    entries = {
        "sp_model_kwargs": {},
        "legacy": False,
        "add_bos_token": True,
        "model_max_length": 64,
    }
    source = write_sentencepiece_folder(
        tmp_path / "in", chat_template=TURN_TEMPLATE, **entries, **REMOTE_CODE
    )
    out = carried(source, tmp_path / "out")
    config = read(out / "tokenizer_config.json")
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (config["bos_token"], config["eos_token"], config["unk_token"]) == (
        "<s>",
        "</s>",
        "<unk>",
    )
    assert config["chat_template"] == TURN_TEMPLATE
    assert config["model_max_length"] == 64
    assert not {"auto_map", "legacy", "sp_model_kwargs"} & set(config)
    assert (out / "tokenizer.model").read_bytes() == (source / "tokenizer.model").read_bytes()
    assert not (out / "generation_config.json").exists()
    require_same(source, out)


@pytest.mark.parametrize("generation", [None, {"eos_token_id": 2, "top_k": 40}])
def test_what_a_familys_own_code_knew_is_written_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, generation: dict[str, Any] | None
) -> None:
    source = tmp_path / "in"
    im_end, im_start = write_reserving_folder(source, monkeypatch)
    documents: dict[str, Any] = {"config": {"model_type": "internlm2"}}
    if generation is not None:
        documents["generation_config"] = generation
    out = carried(source, tmp_path / "out", **documents)
    expected = {"bos_token_id": 1, "eos_token_id": [2, im_end], "pad_token_id": 2}
    assert read(out / "generation_config.json") == (generation or {}) | expected
    require_same(source, out)
    assert stop_token_ids(out, CONFIG) == stop_token_ids(source, CONFIG) == (2, im_end)
    ids = render_chat(load_tokenizer(out), [{"role": "user", "content": "hello"}])
    assert (ids[0], ids[1], ids.count(1)) == (1, im_start, 1)


def test_internlm2_is_written_out(tmp_path: Path) -> None:
    source = write_sentencepiece_folder(tmp_path / "in", model=internlm2_shaped_model())
    out = carried(source, tmp_path / "out", config={"model_type": "internlm2"})
    assert read(out / "generation_config.json")["eos_token_id"] == [2, 92542]
    config = read(out / "tokenizer_config.json")
    names = [config["added_tokens_decoder"][str(index)]["content"] for index in range(92538, 92544)]
    assert names[-2:] == ["<|im_end|>", "<|im_start|>"]
    assert len(names) == 6
    assert "<|im_start|>assistant" in config["chat_template"]


def test_remote_and_newer_classes_become_the_plain_one(tmp_path: Path) -> None:
    newer = {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<|im_end|>"]}
    for number, entries in enumerate((newer, REMOTE_CODE)):
        source = write_fast_folder(tmp_path / f"in{number}", **entries)
        out = carried(source, tmp_path / f"out{number}")
        config = read(out / "tokenizer_config.json")
        assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
        assert "auto_map" not in config
        # transformers 4 reads an object here, transformers 5 both names.
        assert "extra_special_tokens" not in config
        require_same(source, out)
    assert read(tmp_path / "out0/tokenizer_config.json")["additional_special_tokens"] == [
        "<|im_end|>"
    ]


def test_known_classes_stay(tmp_path: Path) -> None:
    source = write_fast_folder(tmp_path / "in", tokenizer_class="Qwen2Tokenizer")
    out = carried(source, tmp_path / "out")
    assert read(out / "tokenizer_config.json")["tokenizer_class"] == "Qwen2Tokenizer"


def test_templates_in_files_are_carried(tmp_path: Path) -> None:
    source = write_fast_folder(tmp_path / "in")
    (source / "chat_template.jinja").write_text(TURN_TEMPLATE, encoding="utf-8")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates/rag.jinja").write_text("x", encoding="utf-8")
    out = carried(source, tmp_path / "out")
    require_same(source, out)


def test_nothing_is_carried_from_a_folder_without_tokenizer(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    out = carried(source, tmp_path / "out", config={"model_type": "internlm2"})
    assert list(out.iterdir()) == []
    out = carried(source, tmp_path / "more", generation_config={"eos_token_id": 2})
    assert [path.name for path in out.iterdir()] == ["generation_config.json"]


def test_a_slow_vocabulary_is_carried_as_it_is(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / "merges.txt").write_text("#version: 0.2\n")
    out = carried(source, tmp_path / "out", vocab={"a": 0}, tokenizer_config=dict(REMOTE_CODE))
    assert {path.name for path in out.iterdir()} == {
        "merges.txt",
        "tokenizer_config.json",
        "vocab.json",
    }


def test_carrying_a_carried_folder_changes_nothing(tmp_path: Path) -> None:
    source = write_sentencepiece_folder(tmp_path / "in", chat_template=TURN_TEMPLATE)
    first = carried(source, tmp_path / "first")
    second = carried(first, tmp_path / "second")
    names = {path.name for path in first.iterdir()}
    assert names == {path.name for path in second.iterdir()}
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


def test_damage_stops_before_anything_is_written(tmp_path: Path) -> None:
    source = write_fast_folder(tmp_path / "in")
    (source / "tokenizer.json").write_text("{")
    out = tmp_path / "out"
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        carried(source, out)
    assert list(out.iterdir()) == []
    write_fast_folder(source)
    with pytest.raises(CheckpointError, match="eos_token_id"):
        carried(source, tmp_path / "out2", generation_config={"eos_token_id": "x"})
