"""Where answers end: every source of stop tokens, and nothing that is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from awqkit.checkpoint.errors import CheckpointError
from awqkit.checkpoint.tokenizer import load_tokenizer, stop_token_ids
from tests.checkpoint.tokenizer_folders import (
    TURN_TEMPLATE,
    tiny_config,
    write_fast_folder,
    write_json,
)

BEGIN, END_OF_TEXT, IM_START, IM_END = range(4)


@pytest.mark.parametrize(
    ("declared", "expected"),
    [(7, (7, 9, 8, END_OF_TEXT)), ([8, 7], (8, 7, 9, END_OF_TEXT)), (None, (9, 8, END_OF_TEXT))],
)
def test_sources_in_the_order_of_authority(tmp_path: Path, declared: Any, expected: Any) -> None:
    folder = write_fast_folder(tmp_path)
    write_json(folder / "generation_config.json", {"eos_token_id": declared})
    assert stop_token_ids(folder, tiny_config(eos_token_ids=(9, 8))) == expected


def test_a_folder_without_tokenizer_has_what_its_configs_say(tmp_path: Path) -> None:
    assert stop_token_ids(tmp_path, tiny_config(eos_token_ids=(5,))) == (5,)
    assert stop_token_ids(tmp_path, tiny_config()) == ()
    write_json(tmp_path / "generation_config.json", {"eos_token_id": [5, 6, -1, 50]})
    assert stop_token_ids(tmp_path, tiny_config(vocab_size=50, eos_token_ids=(5,))) == (5, 6)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (TURN_TEMPLATE, (END_OF_TEXT, IM_END)),
        ("{% for m in messages %}[{{ m.content }}]{% endfor %}", (END_OF_TEXT,)),
        ("{% for m in messages %}{{ m.content + eos_token }}{% endfor %}", (END_OF_TEXT,)),
        ("{% for m in messages %}{{ m.content + ' ' + eos_token }}{% endfor %}", (END_OF_TEXT,)),
        ("{% for m in messages %}{{ m.content + bos_token }}{% endfor %}", (END_OF_TEXT,)),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", (END_OF_TEXT,)),
        ("{{ raise_exception('no conversations') }}", (END_OF_TEXT,)),
        ("{{ 'constant' }}", (END_OF_TEXT,)),
        ("{% broken", (END_OF_TEXT,)),
        (None, (END_OF_TEXT,)),
    ],
)
def test_the_chat_template_shows_the_end_of_a_turn(
    tmp_path: Path, template: str | None, expected: tuple[int, ...]
) -> None:
    folder = write_fast_folder(tmp_path, chat_template=template)
    assert stop_token_ids(folder, tiny_config()) == expected


def test_a_given_tokenizer_spares_the_folders_own(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_fast_folder(tmp_path / "chat", chat_template=TURN_TEMPLATE))
    (tmp_path / "empty").mkdir()
    stops = stop_token_ids(tmp_path / "empty", tiny_config(), tokenizer=tokenizer)
    assert stops == (END_OF_TEXT, IM_END)


@pytest.mark.parametrize("value", ["2", True, [1, "x"], {"id": 1}])
def test_a_damaged_entry_is_refused(tmp_path: Path, value: Any) -> None:
    write_json(tmp_path / "generation_config.json", {"eos_token_id": value})
    with pytest.raises(CheckpointError, match="eos_token_id"):
        stop_token_ids(tmp_path, tiny_config())
