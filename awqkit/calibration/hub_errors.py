"""What went wrong with a data set of a hub, in words that say what to do instead."""

from collections.abc import Iterator

from awqkit.calibration.text_files import ENDINGS_TEXT, in_one_line
from awqkit.errors import CalibrationError

WAYS_OUT = (
    f"Or give a local file ({ENDINGS_TEXT}) as --calib-dataset, or --calib-dataset self, which "
    "samples the text from the model and needs neither a data set nor a network."
)


def hub_error(error: Exception, *, label: str) -> CalibrationError:
    """The paragraph for what a library raised while it fetched or read the data set `label`."""
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        DisabledRepoError,
        EntryNotFoundError,
        GatedRepoError,
        HTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    faults = list(_chain(error))
    said = in_one_line(error)

    def one_of(*kinds: type[BaseException]) -> bool:
        return any(isinstance(fault, kinds) for fault in faults)

    unreachable = one_of(ConnectionError, TimeoutError, LocalEntryNotFoundError)
    if constants.HF_HUB_OFFLINE and (unreachable or LocalEntryNotFoundError.__name__ in said):
        return offline(label)
    if one_of(GatedRepoError) or "is a gated dataset" in said:
        return gated(label)
    if one_of(DisabledRepoError, RepositoryNotFoundError, DatasetNotFoundError):
        return not_found(label)
    if one_of(EntryNotFoundError) and not unreachable:
        return files_missing(label, said)
    status = next((code for fault in faults if (code := _http_status(fault))), None)
    if status is not None:
        return refused_by_server(label, status)
    if unreachable or one_of(HTTPError) or LocalEntryNotFoundError.__name__ in said:
        return unreachable_hub(label, said)
    if one_of(FileNotFoundError):
        return files_missing(label, said)
    if "config" in said.lower() and isinstance(error, ValueError):
        return wrong_config(label, said)
    return unreadable(label, f"{type(error).__name__}: {said}")


def offline(label: str) -> CalibrationError:
    return CalibrationError(
        f"The calibration data set {label} is not in the local cache, and HF_HUB_OFFLINE forbids "
        "to fetch it. Unset HF_HUB_OFFLINE, with HF_ENDPOINT set to a mirror if the hub itself is "
        f"out of reach. {WAYS_OUT}"
    )


def unreachable_hub(label: str, said: str) -> CalibrationError:
    from huggingface_hub import constants

    return CalibrationError(
        f"The calibration data set {label} cannot be fetched: the network connection to "
        f"{constants.ENDPOINT} failed ({said}). Set HF_ENDPOINT to a mirror that this machine can "
        f"reach, such as HF_ENDPOINT=https://hf-mirror.com. {WAYS_OUT}"
    )


def refused_by_server(label: str, status: int) -> CalibrationError:
    from huggingface_hub import constants

    return CalibrationError(
        f"The calibration data set {label} cannot be fetched: {constants.ENDPOINT} answers with "
        f"HTTP status {status}. Try again later, or set HF_ENDPOINT to a mirror. {WAYS_OUT}"
    )


def not_found(label: str) -> CalibrationError:
    return CalibrationError(
        f"The calibration data set {label} is not on the hub: it was withdrawn, renamed or made "
        "private, or the id is misspelt. Check its page on the hub, and run `hf auth login` first "
        f"if it is private. {WAYS_OUT}"
    )


def withdrawn(label: str) -> CalibrationError:
    return CalibrationError(
        f"The calibration data set {label} was withdrawn: the hub has disabled it. Choose another "
        f"one, such as pileval. {WAYS_OUT}"
    )


def gated(label: str) -> CalibrationError:
    return CalibrationError(
        f"The calibration data set {label} is gated: its owners grant access one by one. Ask for "
        "it on the data set's page and log in with `hf auth login` (or set HF_TOKEN). "
        f"{WAYS_OUT}"
    )


def needs_loader_script(label: str) -> CalibrationError:
    return CalibrationError(
        f"The calibration data set {label} can only be read by a Python script of its own, and "
        "code from a hub is never run here. Choose a data set that is stored as Parquet or JSON, "
        f"or download the text itself. {WAYS_OUT}"
    )


def files_missing(label: str, said: str) -> CalibrationError:
    return CalibrationError(
        f"The calibration data set {label} has no data files that can be read, or they were "
        f"withdrawn or moved ({said}). Choose another one, such as pileval. {WAYS_OUT}"
    )


def wrong_config(label: str, said: str) -> CalibrationError:
    return CalibrationError(
        f"The calibration data set {label} has several configurations ({said}). Write the one you "
        f"want behind the id, as --calib-dataset org/name:CONFIG. {WAYS_OUT}"
    )


def unreadable(label: str, said: str) -> CalibrationError:
    return CalibrationError(
        f"The calibration data set {label} cannot be read ({said}). Its files may be damaged or "
        f"in a form that needs its author's code. Choose another one. {WAYS_OUT}"
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from, innermost last; not what it was raised beside."""
    seen: set[int] = set()
    fault: BaseException | None = error
    while fault is not None and id(fault) not in seen:
        seen.add(id(fault))
        yield fault
        fault = fault.__cause__ or (None if fault.__suppress_context__ else fault.__context__)


def _http_status(fault: BaseException) -> int | None:
    status = getattr(getattr(fault, "response", None), "status_code", None)
    return status if isinstance(status, int) else None
