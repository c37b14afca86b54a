"""A model folder's config.json, and what it means."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from awqkit.checkpoint.decoder_config import DecoderConfig
from awqkit.checkpoint.errors import CheckpointError
from awqkit.checkpoint.families import find_family
from awqkit.checkpoint.hub import resolve_source
from awqkit.checkpoint.json_file import read_json_object

CONFIG_FILE = "config.json"


def read_decoder_config(source: str | Path) -> DecoderConfig:
    """The DecoderConfig of a folder (config.json alone is enough) or a hub id."""
    folder = resolve_source(source, files=(CONFIG_FILE,))
    raw = read_raw_config(folder)
    with naming(folder):
        return find_family(raw).read_config(raw)


@contextmanager
def naming(folder: Path) -> Iterator[None]:
    """Begin errors about a folder's content with the folder, where they do not name it anyway."""
    try:
        yield
    except CheckpointError as error:
        if str(folder) in str(error):
            raise
        raise type(error)(f"{folder}: {error}") from error


def read_raw_config(folder: Path) -> dict[str, Any]:
    """config.json as it is; CheckpointError where there is none, or none that can be read."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no {CONFIG_FILE}, so it is no model in Hugging Face form. "
            "Name the folder that holds config.json and the .safetensors files."
        )
    return read_json_object(path)
