"""Strict reading of the small JSON files of a model folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from awqkit.checkpoint.errors import CheckpointError

#: Far above any index or tokenizer; a file that is no JSON must not fill the memory.
MAX_JSON_BYTES = 512 << 20


def parse_json_object(text: str | bytes, *, origin: str) -> dict[str, Any]:
    """Parse one JSON object; a key that occurs twice is an error, since either value may be meant.

    `origin` names the document in the CheckpointError that malformed text raises.
    """
    try:
        value = json.loads(text, object_pairs_hook=lambda pairs: _unique_keys(pairs, origin))
    # A deeply nested document exhausts the parser's stack; bytes may not be UTF-8 at all.
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{origin} is not valid JSON ({error}). "
            "The file is damaged or was edited by hand: fetch it again from where it came."
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{origin} holds a JSON {type(value).__name__} where an object is needed. "
            "Fetch the file again from where it came."
        )
    return value


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file; CheckpointError when it cannot be read or parsed."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(
                f"{path} is {path.stat().st_size} bytes long, too much for a file of its kind. "
                "Fetch it again from where it came."
            )
        text = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    return parse_json_object(text, origin=str(path))


def _unique_keys(pairs: list[tuple[str, Any]], origin: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise CheckpointError(
                f"{origin} names {key!r} twice, so it is unclear which entry holds. "
                "Fetch the file again from where it came, or remove the wrong entry."
            )
        result[key] = value
    return result
