"""Where calibration text comes from: a known name, a local file or a data set of a hub."""

import difflib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from awqkit.calibration.documents import cut_long, passages, shuffled
from awqkit.calibration.hub_text import NAMED_DATASETS, HubDataset, hub_records, parse_hub_id
from awqkit.calibration.text_fields import RenderChat, documents_in
from awqkit.calibration.text_files import (
    COMPRESSED_ENDINGS,
    ENDINGS,
    ENDINGS_TEXT,
    file_records,
    split_ending,
    text_file_lines,
)
from awqkit.errors import CalibrationError

SELF = "self"
PTB = "ptb"
PTB_REPOSITORIES = ("ptb-text-only/ptb_text_only", "ptb_text_only")
#: What --calib-dataset takes besides files and hub ids.
KNOWN_NAMES = (*NAMED_DATASETS, SELF)

# A local file is shuffled as a whole up to here (about 32 MB of English); a stream within a buffer
# that takes seconds to fill.
BUFFER_CHARACTERS = 1 << 25
STREAM_BUFFER_DOCUMENTS = 2048
LOCAL_BUFFER_DOCUMENTS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class TextSource:
    """A resolved source. `documents(seed)` starts reading: non-blank texts in a seeded order."""

    description: str
    documents: Callable[[int], Iterator[str]]


def open_source(source: str, *, render_chat: RenderChat) -> TextSource:
    """Finds out what a `--calib-dataset` names. Nothing is read before the documents are asked for.

    In this order: a name from `KNOWN_NAMES`, an existing local file, a hub id
    `org/name[:config[:split]]`.

    Raises:
        CalibrationError: no such name or file, or a kind of file that is not read here; from the
            documents: whatever hinders reading them.
    """
    if source == PTB or source in PTB_REPOSITORIES:
        raise _dead_ptb()
    if source == SELF:
        raise CalibrationError(
            "The calibration source self is text sampled from the model: there is no data set to "
            "read for it."
        )
    if source in NAMED_DATASETS:
        known = NAMED_DATASETS[source]
        return _hub_source(known, label=f"{source} ({known.label})", render_chat=render_chat)
    if "://" in source:
        raise CalibrationError(
            f"The calibration source {source} is a URL, which is not read. Give the hub id as "
            f"org/name, or download the file and give its path ({ENDINGS_TEXT})."
        )
    path = Path(os.path.expanduser(source)) if source.strip() else None
    if path and os.path.exists(path):
        return _file_source(path, render_chat=render_chat)
    if path and _looks_like_a_path(source):
        raise _missing_file(path)
    dataset = parse_hub_id(source)
    if dataset is None:
        raise _unknown_name(source)
    return _hub_source(dataset, label=dataset.label, render_chat=render_chat)


def _file_source(path: Path, *, render_chat: RenderChat) -> TextSource:
    if path.is_dir():
        raise _folder(path)
    kind, _ = split_ending(path)
    if not kind:
        raise CalibrationError(
            f"The calibration file {path} has an ending that is not known. Files may be "
            f"{ENDINGS_TEXT}: rename it if it is one of these."
        )
    if path.is_file() and path.stat().st_size == 0:
        raise _empty(str(path))

    def documents() -> Iterator[str]:
        if kind == ".txt":
            return passages(text_file_lines(path))
        records = file_records(path)
        return documents_in(records, name=str(path), render_chat=render_chat)

    def ordered(seed: int) -> Iterator[str]:
        return _in_seeded_order(documents(), str(path), seed, LOCAL_BUFFER_DOCUMENTS)

    return TextSource(description=path.name, documents=ordered)


def _hub_source(dataset: HubDataset, *, label: str, render_chat: RenderChat) -> TextSource:
    def documents() -> Iterator[str]:
        records: Iterator[Any] = hub_records(dataset, label=label)
        texts = documents_in(records, name=label, render_chat=render_chat)
        return passages(text.rstrip("\n") for text in texts) if dataset.rows_are_lines else texts

    def ordered(seed: int) -> Iterator[str]:
        return _in_seeded_order(documents(), label, seed, STREAM_BUFFER_DOCUMENTS)

    return TextSource(description=label, documents=ordered)


def _in_seeded_order(
    documents: Iterable[str], name: str, seed: int, max_documents: int
) -> Iterator[str]:
    order = shuffled(
        cut_long(documents),
        seed=seed,
        max_documents=max_documents,
        max_characters=BUFFER_CHARACTERS,
    )
    first = next(order, None)
    if first is None:
        raise _empty(name)
    yield first
    yield from order


def _looks_like_a_path(source: str) -> bool:
    return (
        source.startswith((".", "~", "/", "\\"))
        or source.count("/") > 1
        or source.lower().endswith((*ENDINGS, *COMPRESSED_ENDINGS))
    )


def _missing_file(path: Path) -> CalibrationError:
    folder = path.parent
    names = os.listdir(folder) if folder.is_dir() and os.access(folder, os.R_OK) else []
    similar = difflib.get_close_matches(path.name, names, n=1)
    if similar:
        cure = f"Did you mean {folder / similar[0]}?"
    elif not folder.is_dir():
        cure = f"The folder {folder} does not exist either."
    else:
        cure = "Check the path."
    return CalibrationError(
        f"The calibration file {path} does not exist. {cure} Besides files, --calib-dataset takes "
        f"{', '.join(KNOWN_NAMES)}, or a hub id as org/name."
    )


def _folder(path: Path) -> CalibrationError:
    names = sorted(os.listdir(path)) if os.access(path, os.R_OK) else []
    readable = [name for name in names if split_ending(Path(name))[0]][:5]
    found = f"It holds {', '.join(readable)}: give one of these." if readable else ""
    return CalibrationError(
        f"The calibration source {path} is a folder, and one file is needed ({ENDINGS_TEXT}). "
        f"{found}".rstrip()
    )


def _unknown_name(source: str) -> CalibrationError:
    similar = difflib.get_close_matches(source.lower(), KNOWN_NAMES, n=1, cutoff=0.5)
    guess = f" Did you mean {similar[0]}?" if similar else ""
    return CalibrationError(
        f"There is no calibration data set named '{source}'.{guess} Known names are "
        f"{', '.join(KNOWN_NAMES)}; otherwise give a local file ({ENDINGS_TEXT}), or a data set of "
        "a hub as org/name, org/name:config or org/name:config:split."
    )


def _dead_ptb() -> CalibrationError:
    return CalibrationError(
        "The calibration data set ptb can no longer be downloaded: on the hub it exists only as a "
        "loader script, whose source of the text is dead and which is never run here. Get the "
        "plain file ptb.train.txt of the Penn Treebank (it is part of Mikolov's simple-examples "
        "archive) and give it as --calib-dataset path/to/ptb.train.txt, or take another set: "
        f"{', '.join(KNOWN_NAMES)}."
    )


def _empty(name: str) -> CalibrationError:
    return CalibrationError(
        f"The calibration data {name} is empty: there is no text in it. Give a file or a data set "
        "with some text, or --calib-dataset self, which needs neither."
    )
