"""Seeded damage to the headers, indexes and configs of a model folder."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
HUGE = 10**400
STRANGE: list[Any] = [
    None, True, False, -1, 0, 1, 2, 7, 2.5, -0.0, 1e308, 2**31, 2**63, 2**64, 10**30, HUGE, -HUGE,
    "", "text", "128", "../../etc", "\ud800", "\0", "a" * 5000, [], [[]], [1, "a"], [0] * 1000,
    [HUGE], {}, {"a": 1}, {"": {}}, float("nan"), float("inf"), float("-inf"),
]  # fmt: skip
FILE_NAMES: list[Any] = [
    "../model.safetensors", "../../x.safetensors", "/etc/passwd", "/dev/zero", "a/b.safetensors",
    "..\\x.safetensors", "C:x.safetensors", "x\0.safetensors", "\ud800.safetensors", ".safetensors",
    "config.json", "missing.safetensors", "", None, 7, [], {}, "a" * 300 + ".safetensors", "..",
]  # fmt: skip
Damage = Callable[[Path, random.Random], None]


def damage(folder: Path, draw: random.Random) -> str:
    """Harm one file of a sharded folder, and say how."""
    kind = draw.choice([*HEADER, *INDEXES, *CONFIGS])
    kind(folder, draw)
    return kind.__name__


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _read_header(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def _write_header(path: Path, text: bytes | dict[str, Any], data: bytes) -> None:
    if isinstance(text, dict):
        text = json.dumps(text).encode("utf-8", "surrogatepass")
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def _entry(draw: random.Random, header: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    name = draw.choice([name for name in header if name != "__metadata__"])
    return name, header[name]


def lying_offsets(folder: Path, draw: random.Random) -> None:
    path = draw.choice(shards(folder))
    header, data = _read_header(path)
    _, entry = _entry(draw, header)
    offsets = entry["data_offsets"]
    which = draw.randrange(2)
    shift = draw.choice([1, -1, 2, 8, -8, 128, len(data), 2**40, 2**63, HUGE])
    entry["data_offsets"] = draw.choice(
        [
            [offset + shift for offset in offsets],
            [offset + shift * (index == which) for index, offset in enumerate(offsets)],
            offsets[::-1],
            offsets[:1],
            [*offsets, 0],
            [draw.choice(STRANGE), offsets[1]],
            draw.choice(STRANGE),
        ]
    )
    if entry["data_offsets"] != offsets:
        _write_header(path, header, data)
    else:
        truncated(folder, draw)


def wrong_entry(folder: Path, draw: random.Random) -> None:
    path = draw.choice(shards(folder))
    header, data = _read_header(path)
    name, entry = _entry(draw, header)
    dtypes = ["F64", "F32", "F16", "I8", "U8", "BOOL", "U64", "F4", "F8_E4M3", "f16", "XYZ"]
    match draw.randrange(7):
        case 0:
            entry["dtype"] = draw.choice([d for d in [*dtypes, *STRANGE] if d != entry["dtype"]])
        case 1:
            entry["shape"] = draw.choice(
                [[*entry["shape"][::-1], 2], [-n for n in entry["shape"]], *STRANGE]
            )
        case 2:
            del entry[draw.choice(["dtype", "shape", "data_offsets"])]
        case 3:
            del header[name]
        case 4:
            header[draw.choice(["../x", "lm_head.bias", "model.layers.9.x", "\ud800", ""])] = entry
        case 5:
            header[name] = draw.choice(STRANGE)
        case 6:
            other = draw.choice(["../" + name, name + "s", name.upper(), ""])
            header = {(other if key == name else key): value for key, value in header.items()}
    _write_header(path, header, data)


def same_bytes_twice(folder: Path, draw: random.Random) -> None:
    path = draw.choice(shards(folder))
    header, data = _read_header(path)
    names = [name for name in header if name != "__metadata__"]
    first, second = draw.choice(names), f"copy.{draw.choice(names)}"
    header[second] = header[first]
    _write_header(path, header, data)


def duplicate_tensor(folder: Path, draw: random.Random) -> None:
    path = draw.choice(shards(folder))
    header, data = _read_header(path)
    name, entry = _entry(draw, header)
    text = json.dumps(header)[:-1] + f", {json.dumps(name)}: {json.dumps(entry)}}}"
    _write_header(path, text.encode(), data)


def wrong_length(folder: Path, draw: random.Random) -> None:
    path = draw.choice(shards(folder))
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    lie = draw.choice([0, 1, 2**63, 2**64 - 1, 10**8, length + 8, length - 1, len(data)])
    path.write_bytes(lie.to_bytes(8, "little") + data[8:])


def truncated(folder: Path, draw: random.Random) -> None:
    path = draw.choice(shards(folder))
    size = path.stat().st_size
    os.truncate(path, draw.choice([0, 3, 8, size - 1, size + 1, size + 4096, draw.randrange(size)]))


def flipped_header(folder: Path, draw: random.Random) -> None:
    path = draw.choice(shards(folder))
    header, data = _read_header(path)
    text = bytearray(json.dumps(header).encode())
    # Quotes and brackets break the text; digits and letters lie in it.
    for _ in range(draw.randint(1, 3)):
        text[draw.randrange(len(text))] = draw.randrange(256)
    _write_header(path, bytes(text), data)


def text_that_is_no_json(folder: Path, draw: random.Random) -> None:
    path = draw.choice(shards(folder))
    _, data = _read_header(path)
    _write_header(path, _no_json(draw), data)


def _no_json(draw: random.Random) -> bytes:
    depth = draw.choice([10, 2_000, 200_000])
    return draw.choice(
        [
            b'{"a":' * depth,
            b'{"a":' * depth + b"1" + b"}" * depth,
            b"[" * depth + b"]" * depth,
            b"\xff\xfe\x00",
            b'{"a": \xc3}',
            b"NaN",
            b"{'a': 1}",
            b'{"a": ' + b"9" * 5000 + b"}",
            b'{"a": 1e999}',
            b"",
            b"null",
            b"\xef\xbb\xbf{}",
        ]
    )


def _edit_index(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / INDEX
    index = json.loads(path.read_text())
    changed = edit(index)
    path.write_bytes(json.dumps(index if changed is None else changed).encode())


def wrong_file_in_index(folder: Path, draw: random.Random) -> None:
    def edit(index: dict[str, Any]) -> None:
        names = draw.sample(sorted(index["weight_map"]), draw.choice([1, 3]))
        others = [path.name for path in shards(folder)]
        for name in names:
            used = index["weight_map"][name]
            index["weight_map"][name] = draw.choice(
                [n for n in [*FILE_NAMES, *others] if n != used]
            )

    _edit_index(folder, edit)


def wrong_names_in_index(folder: Path, draw: random.Random) -> None:
    def edit(index: dict[str, Any]) -> Any:
        weights = index["weight_map"]
        name = draw.choice(sorted(weights))
        match draw.randrange(5):
            case 0:
                weights["no.such.tensor"] = weights[name]
            case 1:
                weights[f"../{name}"] = weights.pop(name)
            case 2:
                index["weight_map"] = draw.choice(STRANGE)
            case 3:
                return draw.choice(STRANGE)
            case 4:
                del index["weight_map"]
        return None

    _edit_index(folder, edit)


def index_that_is_no_json(folder: Path, draw: random.Random) -> None:
    (folder / INDEX).write_bytes(_no_json(draw))


def misleading_link(folder: Path, draw: random.Random) -> None:
    path = draw.choice(shards(folder))
    others = [other for other in shards(folder) if other != path]
    path.unlink()
    match draw.randrange(6):
        case 0:
            path.symlink_to(path)
        case 1:
            path.symlink_to("/dev/zero")
        case 2:
            path.symlink_to(draw.choice(others))
        case 3:
            path.symlink_to(folder)
        case 4:
            os.mkfifo(path)
        case 5:
            path.mkdir()


def strange_config(folder: Path, draw: random.Random) -> None:
    path = folder / CONFIG
    raw = json.loads(path.read_text())
    section, key = raw, draw.choice(sorted(raw))
    while isinstance(section[key], dict) and section[key] and draw.random() < 0.8:
        section, key = section[key], draw.choice(sorted(section[key]))
    if draw.random() < 0.2:
        del section[key]
    else:
        section[key] = draw.choice(STRANGE)
    path.write_bytes(json.dumps(raw).encode())


def config_of_another(folder: Path, draw: random.Random) -> None:
    path = folder / CONFIG
    raw = json.loads(path.read_text())
    numbers = [key for key, value in raw.items() if isinstance(value, int) and value > 1]
    key = draw.choice(numbers)
    raw[key] = draw.choice([raw[key] * 2, raw[key] - 1, raw[key] + 1, 10**6, 10**9])
    path.write_bytes(json.dumps(raw).encode())


def config_that_is_no_json(folder: Path, draw: random.Random) -> None:
    (folder / CONFIG).write_bytes(_no_json(draw))


HEADER: list[Damage] = [
    lying_offsets,
    wrong_entry,
    same_bytes_twice,
    duplicate_tensor,
    wrong_length,
    truncated,
    flipped_header,
    text_that_is_no_json,
]
INDEXES: list[Damage] = [
    wrong_file_in_index,
    wrong_names_in_index,
    index_that_is_no_json,
    misleading_link,
]
CONFIGS: list[Damage] = [strange_config, strange_config, config_of_another, config_that_is_no_json]
