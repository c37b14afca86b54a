"""Loading of tokenizers: each form of folder, no foreign code, clear errors."""

from __future__ import annotations

import json
import random
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from awqkit.checkpoint.errors import CheckpointError
from awqkit.checkpoint.tokenizer import encode_prompt, load_tokenizer, render_chat
from tests.checkpoint.sentencepiece_models import HARD_TEXTS, SHARED, as_proto, train
from tests.checkpoint.tokenizer_folders import (
    REMOTE_CODE,
    TURN_TEMPLATE,
    write_fast_folder,
    write_json,
    write_reserving_folder,
    write_sentencepiece_folder,
)

TOKENIZERS = SHARED / "tokenizers"
IM_END, IM_START = 92542, 92543
HELLO = [{"role": "user", "content": "hello"}]

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared tokenizers")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("loading a tokenizer asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_a_fast_tokenizer_is_what_transformers_loads(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = write_fast_folder(tmp_path, bos="<|begin|>", chat_template=TURN_TEMPLATE)
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert ours.named_tokens == theirs.special_tokens_map
    assert ours.chat_template == theirs.chat_template
    for text in (*HARD_TEXTS, "<|im_start|>user\nhi<|im_end|>"):
        ids = ours.encode(text)
        assert ids == theirs(text)["input_ids"]
        assert ours.decode(ids) == theirs.decode(ids)


@pytest.mark.parametrize("named", [True, False, None])
@pytest.mark.parametrize("built_in", [True, False])
def test_the_configuration_decides_about_bos_if_it_says_so(
    tmp_path: Path, named: bool | None, built_in: bool
) -> None:
    config = {} if named is None else {"add_bos_token": named}
    folder = write_fast_folder(tmp_path, bos="<|begin|>" if built_in else None, **config)
    tokenizer = load_tokenizer(folder)
    expected = built_in if named is None else named
    assert (encode_prompt(tokenizer, "hi")[0] == tokenizer.bos_token_id) is expected


@pytest.mark.parametrize("add_bos", [True, False, None])
@pytest.mark.parametrize("add_eos", [True, False, None])
def test_sentencepiece_folders_get_bos_and_no_eos_unless_told(
    tmp_path: Path, add_bos: bool | None, add_eos: bool | None
) -> None:
    folder = write_sentencepiece_folder(tmp_path, add_bos_token=add_bos, add_eos_token=add_eos)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    tokenizer = load_tokenizer(folder)
    text = "the old bridge"
    bos = [] if add_bos is False else [processor.bos_id()]
    eos = [processor.eos_id()] if add_eos else []
    assert encode_prompt(tokenizer, text) == [*bos, *processor.encode(text), *eos]
    assert tokenizer.eos_token_id == processor.eos_id()
    assert len(tokenizer.vocabulary) == len(processor)


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
@pytest.mark.parametrize("legacy", [True, False, None])
def test_a_part_behind_an_added_token_gets_a_space_unless_told(
    tmp_path: Path, algorithm: str, legacy: bool | None
) -> None:
    """Llama's kin say `legacy: false` where a text has it once, at its start."""
    model = train(algorithm, remove_extra_whitespaces=False)
    tokenizer = load_tokenizer(write_sentencepiece_folder(tmp_path, model=model, legacy=legacy))
    proto = as_proto(model)
    proto.normalizer_spec.add_dummy_prefix = legacy is not False
    first = sentencepiece.SentencePieceProcessor(model_proto=model)
    behind = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    for text in ("the river", "ran  under", "\nold", "über"):
        eos = tokenizer.eos_token_id
        assert tokenizer.encode(f"{text}</s>{text}", add_special_tokens=False) == [
            *(*first.encode(text), eos, *behind.encode(text))
        ]
        ids = tokenizer.encode(f"</s>{text}", add_special_tokens=False)
        assert ids == [eos, *behind.encode(text)]
        assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text


def test_no_code_from_the_folder_runs(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    for folder in (
        write_sentencepiece_folder(tmp_path / "slow", **REMOTE_CODE),
        write_fast_folder(tmp_path / "fast", **REMOTE_CODE),
    ):
        code = f"open({str(marker)!r}, 'w').close()\nclass OwnTokenizer: pass\n"
        (folder / "tokenization_own.py").write_text(code)
        assert encode_prompt(load_tokenizer(folder), "hello")
    assert not marker.exists()


def test_added_tokens_of_older_and_newer_folders(tmp_path: Path) -> None:
    size = len(load_tokenizer(write_sentencepiece_folder(tmp_path / "plain")).vocabulary)
    older = write_sentencepiece_folder(tmp_path / "older")
    write_json(older / "added_tokens.json", {"<|a|>": size, "<|b|>": size + 1})
    write_json(older / "special_tokens_map.json", {"eos_token": {"content": "<|a|>"}})
    newer = write_sentencepiece_folder(
        tmp_path / "newer",
        eos_token="<|a|>",
        added_tokens_decoder={
            str(size): {"content": "<|a|>", "special": True},
            str(size + 1): {"content": "<|b|>"},
        },
    )
    for folder in (older, newer):
        tokenizer = load_tokenizer(folder)
        assert tokenizer.eos_token_id == size
        river = tokenizer.encode("river", add_special_tokens=False)
        ids = tokenizer.encode("river<|b|>river<|a|>", add_special_tokens=False)
        assert ids == [*river, size + 1, *river, size]
        assert tokenizer.decode(ids, skip_special_tokens=True) == "river<|b|> river"


def test_template_files_win_over_the_configuration(tmp_path: Path) -> None:
    folder = write_fast_folder(tmp_path, chat_template="configuration")
    assert load_tokenizer(folder).chat_template == "configuration"
    (folder / "chat_template.jinja").write_text("file", encoding="utf-8")
    assert load_tokenizer(folder).chat_template == "file"
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates/rag.jinja").write_text("more", encoding="utf-8")
    assert load_tokenizer(folder).chat_template == {"default": "file", "rag": "more"}


def test_a_family_names_what_its_folders_leave_unnamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    im_end, im_start = write_reserving_folder(tmp_path, monkeypatch)
    assert im_end not in load_tokenizer(tmp_path).encode("<|im_end|>")
    write_json(tmp_path / "config.json", {"model_type": "internlm2"})
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("<|im_end|>", add_special_tokens=False) == [im_end]
    assert (tokenizer.named_tokens["pad_token"], tokenizer.eos_token_id) == ("</s>", 2)
    ids = render_chat(tokenizer, HELLO)
    assert ids[:2] == [1, im_start]
    text = "<s><|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(ids) == text


def test_reserved_pieces_keep_their_names_where_the_template_uses_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = "{{ '[UNUSED_1]' + messages[0]['content'] + '[UNUSED_0]' }}"
    config = {"tokenizer_class": "InternLM2Tokenizer", "chat_template": template}
    im_end, im_start = write_reserving_folder(tmp_path, monkeypatch, **config)
    ids = render_chat(load_tokenizer(tmp_path), HELLO)
    assert (ids[0], ids[-1]) == (im_start, im_end)


def test_a_small_model_of_the_family_has_no_reserved_pieces(tmp_path: Path) -> None:
    folder = write_sentencepiece_folder(tmp_path)
    write_json(folder / "config.json", {"model_type": "internlm2"})
    assert load_tokenizer(folder).chat_template is None


@needs_shared
@pytest.mark.parametrize("configured", [True, False], ids=["7b-chat", "bare"])
def test_internlm2_as_published(tmp_path: Path, configured: bool) -> None:
    shutil.copy(TOKENIZERS / "internlm2/tokenizer.model", tmp_path)
    for name in ("config.json", "tokenizer_config.json")[: 1 + configured]:
        shutil.copy(SHARED / "configs/internlm2_5-7b-chat" / name, tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    for text in HARD_TEXTS:
        if "<|" not in text:  # or it is a special token here and plain text there
            assert encode_prompt(tokenizer, text) == [1, *processor.encode(text)]
    ids = render_chat(tokenizer, [{"role": "system", "content": "你是助手"}, *HELLO])
    expected = [1]
    for role, content in (("system", "你是助手"), ("user", "hello")):
        expected += [IM_START, *processor.encode(f"{role}\n{content}"), IM_END]
        expected += processor.encode("\n")
    assert ids == [*expected, IM_START, *processor.encode("assistant\n")]
    assert (
        tokenizer.decode(ids, skip_special_tokens=True)
        == "system\n你是助手\nuser\nhello\nassistant\n"
    )


@needs_shared
def test_stories260k_is_the_same_from_both_of_its_files(tmp_path: Path) -> None:
    source = SHARED / "models/stories260k"
    shutil.copy(source / "tokenizer.model", tmp_path)
    fast, converted = load_tokenizer(source), load_tokenizer(tmp_path)
    stories = (SHARED / "corpora/tinystories.txt").read_text(encoding="utf-8")[:50_000]
    for text in (*HARD_TEXTS, stories):
        if "▁" in text:  # typed marks at the end are trimmed by SentencePiece and not by the other
            continue
        ids = encode_prompt(fast, text)
        assert ids == encode_prompt(converted, text)
        assert fast.decode(ids) == converted.decode(ids)


def test_an_empty_folder_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json and tokenizer\.model\."):
        load_tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match="no tokenizer"):
        load_tokenizer(tmp_path / "missing")


def test_a_slow_vocabulary_is_not_enough(tmp_path: Path) -> None:
    write_json(tmp_path / "vocab.json", {"a": 0})
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(CheckpointError, match=r"only vocab\.json and merges\.txt"):
        load_tokenizer(tmp_path)


def test_a_damaged_fast_tokenizer_is_refused(tmp_path: Path) -> None:
    path = write_fast_folder(tmp_path) / "tokenizer.json"
    content = path.read_bytes()
    rng = random.Random(0)
    broken = [content[: rng.randrange(len(content))] for _ in range(20)]
    for damage in (b"", b"{}", b"[1]", b'{"version": "9"}', b"\xff\xfe", *broken):
        path.write_bytes(damage)
        with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
            load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "entry",
    [
        {"bos_token": 5},
        {"eos_token": {"lstrip": True}},
        {"added_tokens_decoder": [1]},
        {"added_tokens_decoder": {"x": {"content": "a"}}},
        {"added_tokens_decoder": {"1": "a"}},
        {"additional_special_tokens": "<a>"},
        {"extra_special_tokens": [1]},
        {"chat_template": 5},
        {"chat_template": [{"name": "default"}]},
        {"chat_template": ["x"]},
        {"add_bos_token": "yes"},
        {"model_max_length": "long"},
        {"model_max_length": True},
    ],
    ids=json.dumps,
)
@pytest.mark.parametrize("write", [write_fast_folder, write_sentencepiece_folder])
def test_a_wrong_entry_is_named(tmp_path: Path, entry: dict[str, Any], write: Any) -> None:
    folder = write(tmp_path, **entry)
    with pytest.raises(CheckpointError, match=rf"tokenizer_config\.json.*{next(iter(entry))}"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    "name", ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json"]
)
def test_invalid_json_is_refused(tmp_path: Path, name: str) -> None:
    folder = write_sentencepiece_folder(tmp_path, model=train())
    (folder / name).write_text('{"bos_token": ')
    with pytest.raises(CheckpointError, match=f"{name}.*not valid JSON"):
        load_tokenizer(folder)


def test_a_bos_that_the_vocabulary_lacks_is_refused(tmp_path: Path) -> None:
    folder = write_sentencepiece_folder(tmp_path, bos_token="<|start|>")
    with pytest.raises(CheckpointError, match=r"<\|start\|>.*vocabulary lacks"):
        load_tokenizer(folder)
