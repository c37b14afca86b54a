"""The config.json of a checkpoint that is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from awqkit.checkpoint.canonical import EMBEDDING, FINAL_NORM, LM_HEAD, canonical_shapes
from awqkit.checkpoint.families import find_family
from awqkit.checkpoint.layout import BITS
from awqkit.checkpoint.packing import PackedFormat
from awqkit.checkpoint.quantization_config import CONFIG_KEYS, write_quantization
from awqkit.checkpoint.reader import Checkpoint
from awqkit.checkpoint.written_layout import WrittenLayout


def written_config(
    source: Checkpoint, format: PackedFormat, dense: Mapping[str, str], packed: Mapping[str, int]
) -> dict[str, Any]:
    """config.json for weights made from `source`.

    dense: the canonical names that are stored unquantized, each with its dtype ("bfloat16").
    packed: the others, each with the bits of its codes.
    """
    config = find_family(source.raw_config).written_config(source.raw_config)
    for key in (*CONFIG_KEYS, "auto_map"):
        config.pop(key, None)
    dtype_key = "dtype" if "dtype" in config else "torch_dtype"
    config[dtype_key] = dense.get(EMBEDDING, dense[FINAL_NORM])
    config["quantization_config"] = write_quantization(
        format, _dense_modules(source, dense), _named_modules(source, packed)
    )
    return config


def is_block_linear(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a canonical tensor is the weight of a linear in a block."""
    return name.startswith("model.layers.") and len(shape) == 2


def _dense_modules(source: Checkpoint, dense: Mapping[str, str]) -> list[str]:
    """Linears left unquantized. A head is named even where it is tied: engines ask by name."""
    layout = WrittenLayout(source.config, find_family(source.raw_config))
    linears = [
        layout.module(name)
        for name, shape in canonical_shapes(source.config).items()
        if name in dense and is_block_linear(name, shape)
    ]
    if LM_HEAD in dense or source.config.tie_word_embeddings:
        linears.append(layout.module(LM_HEAD))
    # Parts of a fused matrix are one module.
    return list(dict.fromkeys(linears))


def _named_modules(source: Checkpoint, packed: Mapping[str, int]) -> dict[str, int]:
    """Bits of what is quantized and has to be named: no linear, or one of other bits than most."""
    layout = WrittenLayout(source.config, find_family(source.raw_config))
    return {
        layout.module(name): bits
        for name, bits in packed.items()
        if name == EMBEDDING or bits != BITS
    }
