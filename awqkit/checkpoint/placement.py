"""Where each canonical tensor lies in the files, proven against the config before data is read."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from awqkit.checkpoint.canonical import EMBEDDING, LM_HEAD, canonical_shapes
from awqkit.checkpoint.decoder_config import DecoderConfig
from awqkit.checkpoint.errors import CheckpointError, UnsupportedModelError
from awqkit.checkpoint.families import Family, Location
from awqkit.checkpoint.layout import BITS, GROUP_SIZE, is_quantizable
from awqkit.checkpoint.packing import CODES_SUFFIX, StoredFormat, packed_shapes
from awqkit.checkpoint.quantization_config import StoredQuantization
from awqkit.checkpoint.safetensors_file import StoredTensor

DENSE_DTYPES = ("BF16", "F16", "F32")
_PACKED_DTYPES = {
    **dict.fromkeys(("qweight", "qzeros", "weight_packed", "weight_zero_point"), ("I32",)),
    **dict.fromkeys(("scales", "weight_scale"), DENSE_DTYPES),
    "weight_shape": ("I64", "I32"),
    "g_idx": ("I32", "I64"),
}
#: Buffers that older versions of transformers saved, and scales of a quantized KV cache: the
#: weights mean the same without them.
_HARMLESS = re.compile(r"rotary_emb\.(inv_freq|cos_cached|sin_cached)$|self_attn\.[qkv]_scale$")


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A canonical tensor in the files.

    shape: canonical.  rows: the part of the stored rows that it is; None for all.
    entries: one stored tensor under the key "" where it is dense, else the packed ones by suffix.
    """

    shape: tuple[int, ...]
    rows: tuple[range, ...] | None
    entries: Mapping[str, StoredTensor]
    packed_format: StoredFormat | None = None
    #: GPTQ: what was taken from the zero points before they were stored.
    zero_offset: int = 0
    #: Of a code, where it is packed.
    bits: int = BITS


def place_tensors(
    tensors: Mapping[str, StoredTensor],
    config: DecoderConfig,
    family: Family,
    quantization: StoredQuantization | None,
    *,
    harmless: Collection[str] = (),
) -> dict[str, Placement]:
    """Find every canonical tensor of the config among the stored ones.

    harmless: stored tensors that may have no place.

    Raises CheckpointError where one is missing, has another shape than the config implies, or is
    left over and would change what the model computes.
    """
    _check_layer_count(tensors, config)
    placements: dict[str, Placement] = {}
    used: set[str] = set()
    for name, shape in canonical_shapes(config).items():
        placement = _place(tensors, shape, family.locate(name, config), quantization)
        placements[name] = placement
        used.update(entry.name for entry in placement.entries.values())
    _refuse_unusual_matrices(placements)
    if config.tie_word_embeddings:
        used.add(family.locate(LM_HEAD, config).name)
    leftovers = set(tensors) - used - set(harmless)
    _refuse_leftovers(leftovers - _of_other_parts(leftovers, family))
    return placements


def _place(
    tensors: Mapping[str, StoredTensor],
    shape: tuple[int, ...],
    location: Location,
    quantization: StoredQuantization | None,
) -> Placement:
    rows = shape[0] if location.num_rows is None else location.num_rows
    stored_shape = (rows, *shape[1:])
    dense = tensors.get(location.name)
    stem = location.name.removesuffix("weight")
    is_packed = quantization is not None and stem + CODES_SUFFIX[quantization.format] in tensors
    if is_packed and dense is not None:
        raise CheckpointError(
            f"The checkpoint holds {location.name} twice, packed and plain, so it is unclear which "
            "one counts. Remove one of them, or quantize the model again."
        )
    if quantization is not None and is_packed:
        return Placement(
            shape=shape,
            rows=location.rows,
            entries=_packed_entries(tensors, stem, stored_shape, quantization),
            packed_format=quantization.format,
            zero_offset=quantization.zero_offset,
            bits=_stored_bits(tensors, stem, stored_shape, quantization),
        )
    if dense is None:
        raise _missing(tensors, location.name, stored_shape)
    _check_entry(dense, stored_shape, DENSE_DTYPES)
    return Placement(shape=shape, rows=location.rows, entries={"": dense})


def _packed_entries(
    tensors: Mapping[str, StoredTensor],
    stem: str,
    stored_shape: tuple[int, ...],
    quantization: StoredQuantization,
) -> dict[str, StoredTensor]:
    if len(stored_shape) != 2 or not is_quantizable(*stored_shape):
        raise CheckpointError(
            f"{stem}weight {list(stored_shape)} is stored packed, but config.json gives it a shape "
            f"that groups of {GROUP_SIZE} do not divide. Config and weights do not belong together."
        )
    bits = _stored_bits(tensors, stem, stored_shape, quantization)
    entries: dict[str, StoredTensor] = {}
    for suffix, shape in packed_shapes(quantization.format, *stored_shape, bits=bits).items():
        entry = tensors.get(stem + suffix)
        if entry is None and suffix in quantization.optional:
            continue
        if entry is None:
            raise _missing(tensors, stem + suffix, shape)
        _check_entry(entry, shape, _PACKED_DTYPES[suffix])
        entries[suffix] = entry
    return entries


def _stored_bits(
    tensors: Mapping[str, StoredTensor],
    stem: str,
    stored_shape: tuple[int, ...],
    quantization: StoredQuantization,
) -> int:
    """Which of the widths that config.json names this matrix has: the shape of its codes tells."""
    suffix = CODES_SUFFIX[quantization.format]
    for bits in quantization.widths:
        shapes = packed_shapes(quantization.format, *stored_shape, bits=bits)
        if tensors[stem + suffix].shape == shapes[suffix]:
            return bits
    return BITS


def _refuse_unusual_matrices(placements: Mapping[str, Placement]) -> None:
    """Packed embeddings where no tool writes them, and 8 bits in other places than the two ends."""
    if placements[EMBEDDING].packed_format not in (None, "compressed-tensors"):
        raise UnsupportedModelError(
            "The token embedding is quantized, which is read in compressed-tensors form alone. "
            "Start from the model before it was quantized."
        )
    for name, placement in placements.items():
        if placement.bits != BITS and name not in (EMBEDDING, LM_HEAD):
            raise UnsupportedModelError(
                f"{name} is stored in {placement.bits} bits, which can be read of the embedding "
                "and the head alone. Start from the model before it was quantized."
            )


def _check_entry(entry: StoredTensor, shape: tuple[int, ...], dtypes: tuple[str, ...]) -> None:
    if entry.shape != shape:
        raise CheckpointError(
            f"{entry.path}: tensor {entry.name} has shape {list(entry.shape)}, but config.json "
            f"implies {list(shape)}. Config and weights do not belong together: fetch both anew."
        )
    if entry.dtype not in dtypes:
        raise UnsupportedModelError(
            f"{entry.path}: tensor {entry.name} has dtype {entry.dtype}, where one of "
            f"{', '.join(dtypes)} can be read. Start from the model in BF16, FP16 or FP32."
        )


def _check_layer_count(tensors: Mapping[str, StoredTensor], config: DecoderConfig) -> None:
    # Before anything is listed per layer, which an absurd count would turn into an endless loop.
    if config.num_layers > len(tensors):
        raise CheckpointError(
            f"config.json says that the model has {config.num_layers} layers, but its files hold "
            f"{len(tensors)} tensors. Config and weights do not belong together: fetch both anew."
        )


def _missing(
    tensors: Mapping[str, StoredTensor], name: str, shape: tuple[int, ...]
) -> CheckpointError:
    stem = name.removesuffix("weight")
    packed = [suffix for suffix in CODES_SUFFIX.values() if stem + suffix in tensors]
    if packed:
        return CheckpointError(
            f"{name} is stored packed (as {packed[0]}), but config.json has no quantization_config "
            "that says so. Fetch config.json again from where the weights came."
        )
    return CheckpointError(
        f"config.json implies a tensor {name} of shape {list(shape)}, but no file holds it. "
        "Config and weights do not belong together, or a file is missing: fetch the folder again."
    )


def _of_other_parts(names: set[str], family: Family) -> set[str]:
    """Those that the family leaves out; a warning says that there are any."""
    pattern = family.left_out
    others = set() if pattern is None else {name for name in names if pattern.match(name)}
    if others:
        warnings.warn(
            f"{len(others)} tensors of the model belong to parts that are not its text decoder and "
            "are left out: it reads and writes text only.",
            stacklevel=4,
        )
    return others


def _refuse_leftovers(names: set[str]) -> None:
    leftovers = sorted(name for name in names if not _HARMLESS.search(name))
    if leftovers:
        listed = ", ".join(leftovers[:3]) + (", …" if len(leftovers) > 3 else "")
        raise CheckpointError(
            f"The files hold {len(leftovers)} tensors that config.json does not account for "
            f"({listed}), so the model would compute something else without them. "
            "Config and weights do not belong together, or the model has parts unknown here."
        )
