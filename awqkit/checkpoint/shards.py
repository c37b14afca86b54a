"""Which tensors a model folder holds, and in which of its safetensors files."""

from __future__ import annotations

import reprlib
from pathlib import Path

from awqkit.checkpoint.errors import CheckpointError
from awqkit.checkpoint.json_file import read_json_object
from awqkit.checkpoint.safetensors_file import StoredTensor, read_header

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
#: Bytes that the usual file systems allow.
LONGEST_FILE_NAME = 255
PICKLED_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def find_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every stored tensor of a folder by its stored name; headers are read, data is not.

    Raises CheckpointError when there are no safetensors files, when the index does not describe
    the files, and when two files hold the same tensor.
    """
    index = folder / INDEX_FILE
    weight_map = _read_weight_map(index) if index.is_file() else None
    files = _unindexed_files(folder) if weight_map is None else _indexed_files(folder, weight_map)
    tensors: dict[str, StoredTensor] = {}
    for path in files:
        for name, entry in read_header(path).items():
            if name in tensors:
                raise CheckpointError(
                    f"{folder}: both {tensors[name].path.name} and {path.name} hold tensor {name}, "
                    "so it is unclear which one counts. Fetch the folder again."
                )
            tensors[name] = entry
    for name, file_name in (weight_map or {}).items():
        if name not in tensors or tensors[name].path.name != file_name:
            raise CheckpointError(
                f"{index} places tensor {name} in {file_name}, but that file does not hold it. "
                "Index and weights are of different versions: fetch the folder again."
            )
    return tensors


def _read_weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map. Fetch the file again.")
    for name, file_name in weight_map.items():
        if not _is_plain_file_name(file_name):
            raise CheckpointError(
                f"{index} places tensor {name} in {reprlib.repr(file_name)}, which is no plain "
                "name of a .safetensors file in the same folder. Such an index is not followed: "
                "fetch the folder from a source that you trust."
            )
    return weight_map


def _is_plain_file_name(value: object) -> bool:
    return (
        isinstance(value, str)
        and value.endswith(".safetensors")
        and not any(character in value for character in "/\\:")
        and value.isprintable()
        and len(value.encode()) <= LONGEST_FILE_NAME
    )


def _indexed_files(folder: Path, weight_map: dict[str, str]) -> list[Path]:
    names = sorted(set(weight_map.values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of the {len(names)} files that {INDEX_FILE} lists: "
            f"{', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}. "
            "The download is incomplete: fetch them."
        )
    return [folder / name for name in names]


def _unindexed_files(folder: Path) -> list[Path]:
    single = folder / SINGLE_FILE
    if single.is_file():
        return [single]
    files = sorted(folder.glob("*.safetensors"))
    if len(files) > 1:
        raise CheckpointError(
            f"{folder} holds {len(files)} safetensors files but neither {SINGLE_FILE} nor "
            f"{INDEX_FILE}, which says which of them belong together. Fetch the index."
        )
    if not files:
        raise _no_weights(folder)
    return files


def _no_weights(folder: Path) -> CheckpointError:
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLED_SUFFIXES)
    if not pickled:
        return CheckpointError(
            f"{folder} holds no weights: there is no .safetensors file. "
            "Fetch the whole model and not its configuration alone."
        )
    return CheckpointError(
        f"{folder} holds its weights as pickled files only ({', '.join(pickled[:3])}). Loading a "
        "pickle runs the code inside it, so these are refused. Use a safetensors version of the "
        "model, or convert it where you trust it: load it in transformers and call "
        "`model.save_pretrained(folder, safe_serialization=True)`."
    )
