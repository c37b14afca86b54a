"""A model's folder on this machine, downloaded where the name is an id of the Hugging Face Hub."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from awqkit.checkpoint.errors import CheckpointError

#: Everything that is read, and nothing that is code or a pickle.
MODEL_FILES = ("*.json", "*.safetensors", "tokenizer.model", "merges.txt", "*.jinja")
#: Patterns match whole paths: "*" also reaches into subfolders such as "original/", and these, like
#: consolidated files, hold the same weights once more. (Templates do lie in a subfolder.)
DUPLICATES = ("*/*.json", "*/*.safetensors", "*/*.model", "consolidated*")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def resolve_source(source: str | Path, *, files: Sequence[str] = MODEL_FILES) -> Path:
    """The folder that `source` names: a local path, or a hub id such as "org/model".

    A hub id is downloaded (only `files`) into huggingface_hub's cache, or taken from there.
    Raises CheckpointError, at once and without network, for anything that looks like a path.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(
            f"{source} is a file. A model is a folder with config.json and .safetensors files: "
            "name the folder."
        )
    if _looks_like_hub_id(str(source)):
        return _download(str(source), files)
    raise CheckpointError(
        f"There is no such folder: {source}. Check the spelling, or name a model of the "
        "Hugging Face Hub as organisation/name."
    )


def model_name(folder: Path) -> str:
    """What the model is called: its folder's name or, in the hub's cache, its repository's.

    >>> model_name(Path("models--org--model/snapshots/0123abcd"))
    'model'
    """
    path = Path(os.path.abspath(folder))  # of "." too, and without following links
    repository = path.parent.parent.name
    if path.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.rpartition("--")[2]
    return path.name


def _looks_like_hub_id(source: str) -> bool:
    return _HUB_ID.fullmatch(source) is not None and not Path(source).parent.exists()


def _download(hub_id: str, files: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HTTPError,
        RepositoryNotFoundError,
    )

    try:
        return Path(
            snapshot_download(hub_id, allow_patterns=list(files), ignore_patterns=list(DUPLICATES))
        )
    except GatedRepoError as error:
        raise CheckpointError(
            f"The model {hub_id} is gated: its owner wants its terms accepted first. Accept them "
            "on its page on the hub and set HF_TOKEN to your access token, or name a local folder."
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"There is no model {hub_id} on the hub and no such folder here, or the model is "
            "private. Check the spelling; for a private model set HF_TOKEN to your access token; "
            "for a model on this machine name its folder."
        ) from error
    # ValueError: the hub's own check of ids.
    except (OSError, HTTPError, ValueError) as error:
        raise CheckpointError(
            f"{hub_id} is no folder here, and it could not be downloaded from the hub "
            f"({_first_line(error)}). Check the network, set HF_ENDPOINT to a mirror that you can "
            "reach (and HF_TOKEN where it asks for one), or name a local folder."
        ) from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
