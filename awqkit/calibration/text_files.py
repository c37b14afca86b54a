"""Local calibration files, read as a stream: plain, zstd or gzip; text, JSON, JSON Lines, Parquet.

A record is whatever one document is stored as: a string, or an object with fields. A file is read
only as far as somebody asks for more records; `.json` alone has to be read whole.
"""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from awqkit.calibration.text_fields import KNOWN_FIELDS, TEXT_FIELDS, text_columns
from awqkit.errors import CalibrationError

READ_BYTES = 1 << 18
PARQUET_ROWS = 256
# Archives written with `zstd --long=31` need a window this large to be read back.
ZSTD_MAX_WINDOW = 1 << 31

ENDINGS = (".txt", ".jsonl", ".json", ".parquet")
COMPRESSED_ENDINGS = (".zst", ".gz")
ENDINGS_TEXT = ".txt, .jsonl, .jsonl.zst, .json or .parquet"


class _DamagedFrame(ValueError):
    """A zstd frame that cannot be decompressed."""


def split_ending(path: Path) -> tuple[str, str]:
    """The kind of a file and its compression: ("" for none), ("", "") where it is neither.

    >>> split_ending(Path("pile/val.jsonl.zst"))
    ('.jsonl', '.zst')
    """
    name = path.name.lower()
    compression = next((ending for ending in COMPRESSED_ENDINGS if name.endswith(ending)), "")
    name = name.removesuffix(compression)
    kind = next((ending for ending in ENDINGS if name.endswith(ending)), "")
    if not kind or (kind == ".parquet" and compression):
        return "", ""
    return kind, compression


def text_file_lines(path: Path) -> Iterator[str]:
    """The lines of a `.txt` file, decoded, without their line ends."""
    for number, line in _numbered_lines(path):
        yield _decoded(line, where=f"line {number} of {path}").removesuffix("\r")


def file_records(path: Path) -> Iterator[Any]:
    """The records of a `.jsonl`, `.json` or `.parquet` file.

    Of a Parquet table only the columns that hold text are read, if there are any.

    Raises:
        CalibrationError: the file cannot be read, is damaged, or is not UTF-8.
    """
    readers: dict[str, Callable[[], Iterator[Any]]] = {
        ".jsonl": lambda: _json_line_records(path),
        ".json": lambda: _json_records(path),
        ".parquet": lambda: _parquet_records(path),
    }
    return readers[split_ending(path)[0]]()


def _json_line_records(path: Path) -> Iterator[Any]:
    for number, line in _numbered_lines(path):
        if line.strip():
            where = f"line {number} of {path}"
            yield _parsed(_decoded(line, where=where), where=where)


def _json_records(path: Path) -> Iterator[Any]:
    content = _decoded(b"".join(_chunks(path)), where=str(path))
    try:
        value = json.loads(content)
    except RecursionError as error:
        raise _not_json(str(path), error) from error
    except ValueError as error:
        # Many data sets call JSON Lines ".json": a second value after the first one tells.
        if not str(error).startswith("Extra data"):
            raise _not_json(str(path), error) from error
        for number, line in enumerate(content.split("\n"), start=1):
            if line.strip():
                yield _parsed(line, where=f"line {number} of {path}")
    else:
        yield from _records_in(value)


def _records_in(value: Any) -> Iterator[Any]:
    """A list is its items. An object is one record, unless it merely wraps lists of records."""
    if isinstance(value, list):
        yield from value
        return
    if not isinstance(value, dict):
        yield value
        return
    columns = [item for key, item in value.items() if key in TEXT_FIELDS and _is_list_of(item, str)]
    wrapped = [item for item in value.values() if _is_list_of(item, dict)]
    if columns:
        yield from columns[0]
    elif wrapped and not KNOWN_FIELDS & value.keys():
        for records in wrapped:
            yield from records
    else:
        yield value


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, kind) for item in value)


def _parquet_records(path: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as table:
            columns = text_columns(table.schema_arrow.names)
            for batch in table.iter_batches(batch_size=PARQUET_ROWS, columns=columns):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CalibrationError(
            f"The calibration file {path} is not a sound Parquet file ({in_one_line(error)}). It "
            "may have been cut short while it was copied or downloaded: fetch it again."
        ) from error


def _numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file as bytes without b"\\n", counted from 1."""
    number = 1
    unfinished: list[bytes] = []  # joined once, as a line may be as long as a file
    for chunk in _chunks(path):
        first, *others = chunk.split(b"\n")
        unfinished.append(first)
        for other in others:
            yield number, b"".join(unfinished)
            number, unfinished = number + 1, [other]
    if last := b"".join(unfinished):
        yield number, last


def _chunks(path: Path) -> Iterator[bytes]:
    """The decompressed bytes of a file, piece by piece, without a byte order mark."""
    read = {"": _plain_chunks, ".zst": _zstd_chunks, ".gz": _gzip_chunks}[split_ending(path)[1]]
    chunks = read(path)
    try:
        first = next(chunks, b"")
        _refuse_utf16(first, path)
        yield first.removeprefix(b"\xef\xbb\xbf")
        yield from chunks
    except (_DamagedFrame, zlib.error, EOFError, gzip.BadGzipFile) as error:
        raise CalibrationError(
            f"The calibration file {path} cannot be decompressed ({in_one_line(error)}). It is not "
            "what its ending says or was cut short while it was copied or downloaded: fetch it "
            "again."
        ) from error
    except OSError as error:
        raise CalibrationError(
            f"The calibration file {path} cannot be read ({error.strerror or error}). Check that "
            "it is an ordinary file that you may read."
        ) from error


def _plain_chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(READ_BYTES):
            yield chunk


def _gzip_chunks(path: Path) -> Iterator[bytes]:
    with gzip.open(path, "rb") as file:
        while chunk := file.read(READ_BYTES):
            yield chunk


def _zstd_chunks(path: Path) -> Iterator[bytes]:
    """Frame after frame, as parallel compressors write them.

    The library's own stream reader takes the end of a file for the end of a frame, so that a
    truncated archive would pass for a short one; here it is an EOFError.
    """
    zstandard = _zstandard(path)
    decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_MAX_WINDOW)
    frame = None
    for compressed in _plain_chunks(path):
        while compressed:
            frame = frame or decompressor.decompressobj()
            try:
                yield frame.decompress(compressed)
            except zstandard.ZstdError as error:
                raise _DamagedFrame(str(error)) from error
            compressed = frame.unused_data
            if frame.eof:
                frame = None
    if frame is not None:
        raise EOFError("the file ends inside a compressed frame")


def _zstandard(path: Path) -> ModuleType:
    """The library, imported only where a file needs it."""
    try:
        import zstandard
    except ImportError as error:
        raise CalibrationError(
            f"The calibration file {path} is compressed with zstd, which takes the package "
            "zstandard. Install it with `pip install zstandard`, or decompress the file."
        ) from error
    return zstandard


def _refuse_utf16(first: bytes, path: Path) -> None:
    if first.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise CalibrationError(
            f"The calibration file {path} is not UTF-8 but UTF-16. Save it as UTF-8, for example "
            "with `iconv -f UTF-16 -t UTF-8`."
        )


def _decoded(line: bytes, *, where: str) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CalibrationError(
            f"The calibration text is not UTF-8: {where} has the byte 0x{line[error.start]:02x} "
            f"at offset {error.start}. Save the file as UTF-8, for example with `iconv -t UTF-8`."
        ) from error


def _parsed(line: str, *, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _not_json(where, error) from error


def _not_json(where: str, error: Exception) -> CalibrationError:
    return CalibrationError(
        f"The calibration data is broken: {where} is not JSON ({in_one_line(error)}). Mend or "
        'remove it; JSON Lines has one object such as {"text": "..."} on each line.'
    )


def in_one_line(error: BaseException, *, limit: int = 300) -> str:
    """What an error of a library says, fit to be quoted inside a paragraph."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
