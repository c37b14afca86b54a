"""The tokens at which a model's answer ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from awqkit.checkpoint.chat import render_chat_text
from awqkit.checkpoint.decoder_config import DecoderConfig
from awqkit.checkpoint.errors import CheckpointError, ConversationError
from awqkit.checkpoint.json_file import read_json_object
from awqkit.checkpoint.text_tokenizer import TextTokenizer
from awqkit.checkpoint.tokenizer_loading import has_tokenizer, load_tokenizer

GENERATION_FILE = "generation_config.json"
_ANSWER = "ANSWER"


def stop_token_ids(
    folder: str | Path,
    config: DecoderConfig,
    *,
    tokenizer: TextTokenizer | None = None,
) -> tuple[int, ...]:
    """Every id that ends an answer, without repeats, in the order of authority.

    That is: generation_config.json, config.json, the tokenizer's eos, and the special token that
    the chat template writes behind an assistant's message. Ids outside the vocabulary, such as -1
    for "none", are left out. `tokenizer` spares loading the folder's own again.
    Raises CheckpointError where a file is damaged.
    """
    folder = Path(folder)
    ids = [*_declared_ids(folder), *config.eos_token_ids]
    if tokenizer is None and has_tokenizer(folder):
        tokenizer = load_tokenizer(folder)
    if tokenizer is not None:
        ids += _tokenizer_ids(tokenizer)
    return tuple(dict.fromkeys(index for index in ids if 0 <= index < config.vocab_size))


def read_generation_config(folder: Path) -> dict[str, Any]:
    """generation_config.json as it is; empty without one."""
    path = folder / GENERATION_FILE
    return read_json_object(path) if path.is_file() else {}


def _declared_ids(folder: Path) -> list[int]:
    value = read_generation_config(folder).get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(isinstance(index, bool) or not isinstance(index, int) for index in ids):
        raise CheckpointError(
            f"{folder / GENERATION_FILE}: eos_token_id is {value!r}; it must be a token id or a "
            "list of them. Correct the entry, or fetch the file again."
        )
    return ids


def _tokenizer_ids(tokenizer: TextTokenizer) -> Iterator[int]:
    if tokenizer.eos_token_id is not None:
        yield tokenizer.eos_token_id
    end_of_turn = _end_of_turn(tokenizer)
    if end_of_turn is not None:
        yield end_of_turn


def _end_of_turn(tokenizer: TextTokenizer) -> int | None:
    """What the chat template writes right behind an answer, if that is a special token."""
    messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = render_chat_text(tokenizer, messages, add_generation_prompt=False)
    except (CheckpointError, ConversationError):
        # No template, or none for this conversation: then the declared tokens are all there are.
        return None
    _, found, behind = text.rpartition(_ANSWER)
    ids = tokenizer.encode(behind.lstrip(), add_special_tokens=False) if found else []
    special = {index for index, token in tokenizer.added_tokens.items() if token.special}
    # Some templates open the next turn with bos, which ends nothing.
    special -= {tokenizer.bos_token_id} - {tokenizer.eos_token_id}
    return ids[0] if ids and ids[0] in special else None
