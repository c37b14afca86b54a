"""Calibration text from a Hugging Face hub, streamed: only what is used is downloaded.

The `datasets` library reads the data; it runs no code of the data set's author. One quick request
comes first, because that library spends half a minute on retries before it says that there is no
network, and then does not say why.
"""

import contextlib
import logging
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from awqkit.calibration.hub_errors import hub_error, needs_loader_script, withdrawn
from awqkit.calibration.text_fields import text_columns
from awqkit.errors import CalibrationError

PROBE_SECONDS = 10.0
# The hub library below it tries every request six times already.
READ_ATTEMPTS = 1
RETRY_SETTINGS = ("STREAMING_OPEN_MAX_RETRIES", "STREAMING_READ_MAX_RETRIES")
SPLIT_PREFERENCE = ("train", "validation", "test")

_HUB_ID = re.compile(
    r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(:(?P<config>[^:/\s]*)(:(?P<split>[^:/\s]+))?)?", re.ASCII
)


@dataclass(frozen=True, kw_only=True)
class HubDataset:
    """Where on a hub the text lies.

    `config` None is the data set's default one, `split` None the first that it has of train,
    validation and test. `rows_are_lines`: a row is a line of running text, not a document.
    """

    repo: str
    config: str | None = None
    split: str | None = None
    rows_are_lines: bool = False

    @property
    def label(self) -> str:
        return ", ".join(part for part in (self.repo, self.config, self.split) if part)


NAMED_DATASETS = {
    "pileval": HubDataset(repo="mit-han-lab/pile-val-backup", split="validation"),
    "c4": HubDataset(repo="allenai/c4", config="en", split="validation"),
    "wikitext2": HubDataset(
        repo="Salesforce/wikitext", config="wikitext-2-raw-v1", split="train", rows_are_lines=True
    ),
}


def parse_hub_id(source: str) -> HubDataset | None:
    """Reads `org/name[:config[:split]]`; None where the text is not of that form.

    An empty config is the default one: `org/name::test`. A bare id of a data set that is known
    under a name is read as that one is.
    """
    match = _HUB_ID.fullmatch(source)
    if match is None:
        return None
    config, split = match["config"] or None, match["split"]
    for known in NAMED_DATASETS.values():
        if match["repo"] == known.repo and not config and not split:
            return known
    return HubDataset(repo=match["repo"], config=config, split=split)


def hub_records(dataset: HubDataset, *, label: str) -> Iterator[dict[str, Any]]:
    """The rows of a data set in stored order; of its columns those with text, if there are any.

    `label` is what errors call the data set.

    Raises:
        CalibrationError: no network, no such data set or split, access not granted, a data set
            that only its own code could read, or damaged data.
    """
    try:
        _probe(dataset, label=label)
    except _library_faults() as error:
        raise hub_error(error, label=label) from error
    with _brief_library():
        try:
            rows = iter(_open_stream(dataset))
        except _library_faults() as error:
            raise hub_error(error, label=label) from error
        while True:
            # Around nothing but the next row, so that no error of whoever uses it is caught here.
            try:
                row = next(rows, None)
            except _library_faults() as error:
                raise hub_error(error, label=label) from error
            if row is None:
                return
            yield row


@contextlib.contextmanager
def _brief_library() -> Iterator[None]:
    """Keeps the library from retrying for minutes in silence, and from logging what we raise."""
    import datasets

    config, verbosity = datasets.config, datasets.logging.get_verbosity()
    # Not every release of the library has both.
    attempts = {name: getattr(config, name) for name in RETRY_SETTINGS if hasattr(config, name)}
    for name in attempts:
        setattr(config, name, READ_ATTEMPTS)
    datasets.logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        for name, value in attempts.items():
            setattr(config, name, value)
        datasets.logging.set_verbosity(verbosity)


def _library_faults() -> tuple[type[Exception], ...]:
    """What the libraries let out when the network or the data of a stranger is at fault.

    They do not wrap what their readers raise, so plain Python errors are among these.
    """
    import pyarrow as pa
    import yaml
    import zstandard
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HTTPError

    return (
        *(OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ImportError),
        *(EOFError, zlib.error, zstandard.ZstdError, pa.ArrowException, yaml.YAMLError),
        *(HTTPError, DatasetsError),
    )


def _probe(dataset: HubDataset, *, label: str) -> None:
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        return  # the library may still have a copy in its cache, and asks nobody
    info = HfApi().dataset_info(dataset.repo, timeout=PROBE_SECONDS)
    if getattr(info, "disabled", False):
        raise withdrawn(label)
    script = f"{dataset.repo.split('/')[1]}.py"
    if any(file.rfilename == script for file in info.siblings or ()):
        raise needs_loader_script(label)


def _open_stream(dataset: HubDataset) -> Any:
    import datasets

    splits = datasets.load_dataset(dataset.repo, dataset.config, streaming=True)
    stream = splits[_chosen_split(dataset, list(splits))]
    columns = text_columns(stream.column_names or ())
    # Other columns may hold images or sound, and fail for want of their decoders.
    return stream.select_columns(columns) if columns else stream


def _chosen_split(dataset: HubDataset, available: list[str]) -> str:
    if dataset.split is None:
        preferred = [split for split in SPLIT_PREFERENCE if split in available]
        return (preferred or available)[0]
    if dataset.split not in available:
        raise CalibrationError(
            f"The data set {dataset.repo} has no split {dataset.split}; it has "
            f"{', '.join(available)}. Give one of them, as --calib-dataset "
            f"{dataset.repo}:{dataset.config or ''}:{available[0]}."
        )
    return dataset.split
