"""Ids, texts and conversations are those of the transformers library, which is left out."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from awqkit.checkpoint.errors import TextError
from awqkit.checkpoint.tokenizer import (
    TextTokenizer,
    carry_tokenizer,
    load_tokenizer,
    render_chat,
    transformers_tokenizer,
)
from tests.checkpoint.sentencepiece_models import HARD_TEXTS, SHARED, random_texts, train
from tests.checkpoint.tokenizer_folders import (
    TURN_TEMPLATE,
    internlm2_shaped_model,
    tiny_config,
    write_fast_folder,
    write_json,
    write_sentencepiece_folder,
)

DEMO = Path(__file__).parents[2] / "examples" / "demo_model" / "model"
CONFIG = tiny_config(bos_token_id=1, eos_token_ids=(2,), pad_token_id=2)
Maker = Callable[[Path], Path]


def demo_model(tmp_path: Path) -> Path:
    return DEMO


def plain(tmp_path: Path) -> Path:
    return write_fast_folder(tmp_path / "plain")


def with_bos(tmp_path: Path) -> Path:
    return write_fast_folder(tmp_path / "bos", bos="<|begin|>", chat_template=TURN_TEMPLATE)


def with_more_tokens(tmp_path: Path) -> Path:
    """Tokens that tokenizer.json lacks, with each kind of flag, and named ones among them."""
    size = len(load_tokenizer(write_fast_folder(tmp_path / "before")).vocabulary)
    flags = ("lstrip", "rstrip", "single_word", "special", "normalized")
    added = {
        str(size + number): {"content": f"<|{flag}|>", flag: True}
        for number, flag in enumerate(flags)
    }
    added[str(size + 5)] = {"content": "<|closing|>", "rstrip": True}
    return write_fast_folder(
        tmp_path / "more",
        added_tokens_decoder=added,
        eos_token="<|closing|>",
        pad_token="<|padding|>",
        additional_special_tokens=["<|extra|>", "<|special|>"],
    )


def with_roles_for_plain_tokens(tmp_path: Path) -> Path:
    """tokenizer.json calls a token plain that has a role, and lacks two that have one."""
    from tokenizers import AddedToken, Tokenizer

    folder = write_fast_folder(
        tmp_path / "roles", unk_token="<|thought|>", pad_token="<|pad|>", sep_token="<|sep|>"
    )
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.add_tokens([AddedToken("<|thought|>", normalized=False)])
    backend.save(str(folder / "tokenizer.json"))
    return folder


def with_tokens_in_both_files(tmp_path: Path) -> Path:
    """added_tokens.json repeats a token of tokenizer.json, without its flags."""
    from tokenizers import AddedToken, Tokenizer

    folder = write_fast_folder(tmp_path / "both")
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.add_tokens([AddedToken("<|turn|>", special=True, lstrip=True, normalized=False)])
    backend.save(str(folder / "tokenizer.json"))
    write_json(folder / "added_tokens.json", {"<|turn|>": backend.token_to_id("<|turn|>")})
    return folder


def with_older_files(tmp_path: Path) -> Path:
    folder = write_fast_folder(tmp_path / "older")
    size = len(load_tokenizer(folder).vocabulary)
    write_json(folder / "added_tokens.json", {"<|a|>": size, "<|b|>": size + 1})
    write_json(folder / "special_tokens_map.json", {"eos_token": {"content": "<|a|>"}})
    return folder


def converted(tmp_path: Path) -> Path:
    return carried(write_sentencepiece_folder(tmp_path / "sp", model=train()), tmp_path)


def converted_with_one_prefix(tmp_path: Path) -> Path:
    model = train(symbols=("<turn>",), remove_extra_whitespaces=False)
    source = write_sentencepiece_folder(tmp_path / "sp", model=model, legacy=False)
    return carried(source, tmp_path)


def internlm2_shaped(tmp_path: Path) -> Path:
    source = write_sentencepiece_folder(tmp_path / "sp", model=internlm2_shaped_model())
    write_json(source / "config.json", {"model_type": "internlm2"})
    return carried(source, tmp_path)


def internlm2(tmp_path: Path) -> Path:
    source = tmp_path / "sp"
    source.mkdir()
    shutil.copy(shared("tokenizers/internlm2") / "tokenizer.model", source)
    write_json(source / "config.json", {"model_type": "internlm2"})
    return carried(source, tmp_path)


def stories260k(tmp_path: Path) -> Path:
    return shared("models/stories260k")


def carried(source: Path, tmp_path: Path) -> Path:
    out = tmp_path / "out"
    out.mkdir()
    carry_tokenizer(source, out, CONFIG)
    return out


def shared(name: str) -> Path:
    if not (SHARED / name).is_dir():
        pytest.skip(f"../shared/{name} is not on this machine")
    return SHARED / name


MAKERS: tuple[Maker, ...] = (
    *(demo_model, plain, with_bos, with_more_tokens, with_older_files),
    *(with_roles_for_plain_tokens, with_tokens_in_both_files),
    *(converted, converted_with_one_prefix, internlm2_shaped, internlm2, stories260k),
)
every_folder = pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)


def texts_of(tokenizer: TextTokenizer, *, count: int) -> list[str]:
    """Hard ones, and random ones of the vocabulary's own pieces with special tokens between."""
    rng = random.Random(7)
    pieces = sorted(tokenizer.vocabulary)
    special = [token.content for token in tokenizer.added_tokens.values()]
    made = random_texts([rng.choice(pieces) for _ in range(300)], seed=3, count=count)
    joints = ["", " ", "  ", "\n", "x"]
    mixed = [
        rng.choice(joints).join([text[:20], rng.choice(special), rng.choice(special), text[20:]])
        for text in (*HARD_TEXTS, *made)
        if special
    ]
    return [*HARD_TEXTS, *made, *mixed]


@every_folder
def test_ids_and_texts_are_those_of_the_transformers_library(make: Maker, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    folder = make(tmp_path)
    ours, theirs = load_tokenizer(folder), PreTrainedTokenizerFast.from_pretrained(folder)
    assert ours.vocabulary == theirs.get_vocab()
    assert ours.named_tokens == theirs.special_tokens_map
    assert (ours.bos_token_id, ours.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)
    require_same(ours, theirs)


@every_folder
def test_who_wants_the_librarys_class_gets_the_same(make: Maker, tmp_path: Path) -> None:
    folder = make(tmp_path)
    ours, wrapped = load_tokenizer(folder), transformers_tokenizer(folder)
    assert wrapped.get_vocab() == ours.vocabulary
    assert list(wrapped.added_tokens_decoder) == list(ours.added_tokens)
    assert wrapped.chat_template == ours.chat_template
    require_same(ours, wrapped)


def require_same(ours: TextTokenizer, theirs: Any) -> None:
    texts = texts_of(ours, count=60)
    for text in texts:
        ids = ours.encode(text)
        assert ids == theirs(text)["input_ids"], text
        bare = ours.encode(text, add_special_tokens=False)
        assert bare == theirs(text, add_special_tokens=False)["input_ids"], text
        require_same_text(ours, theirs, ids)
    assert ours.encode_batch(texts) == theirs(texts)["input_ids"]
    rng = random.Random(11)
    known = sorted(ours.vocabulary.values())
    for length in range(1, 60):
        require_same_text(ours, theirs, [rng.choice(known) for _ in range(length)])


def require_same_text(ours: TextTokenizer, theirs: Any, ids: list[int]) -> None:
    for skip in (False, True):
        text = theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
        assert ours.decode(ids, skip_special_tokens=skip) == text


def test_what_training_asked_for_is_not_done_to_prompts(tmp_path: Path) -> None:
    """Some files cut every text to a length, or fill it up."""
    from tokenizers import Tokenizer

    folder = write_fast_folder(tmp_path, bos="<|begin|>")
    expected = load_tokenizer(folder).encode("the river ran under the old bridge")
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.enable_truncation(max_length=4)
    backend.enable_padding(length=64, pad_id=1, pad_token="<|end_of_text|>")
    backend.save(str(folder / "tokenizer.json"))
    assert load_tokenizer(folder).encode("the river ran under the old bridge") == expected


@pytest.mark.parametrize("text", ["a\udcff", "\ud83d"])
def test_bytes_that_are_no_character_are_told(text: str) -> None:
    tokenizer = load_tokenizer(DEMO)
    with pytest.raises(TextError, match="UTF-8"):
        tokenizer.encode(text)
    with pytest.raises(TextError, match="UTF-8"):
        render_chat(tokenizer, [{"role": "user", "content": text}])
