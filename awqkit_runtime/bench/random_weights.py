"""A decoder of a given shape with random weights: as fast as a trained one, and as large."""

from __future__ import annotations

import torch
from torch import Tensor

from awqkit.checkpoint import DecoderConfig, PackedWeight, QuantizedWeight, pack_weight
from awqkit.checkpoint.canonical import (
    EMBEDDING,
    FINAL_NORM,
    LM_HEAD,
    canonical_shapes,
    layer_prefix,
    layer_shapes,
)
from awqkit.checkpoint.layout import GROUP_SIZE, max_code
from awqkit_runtime.engine.memory import free_memory
from awqkit_runtime.errors import OutOfMemoryError
from awqkit_runtime.layers.placement import Placement
from awqkit_runtime.model_size import ModelSize
from awqkit_runtime.models.decoder import Decoder, DecoderLayer
from awqkit_runtime.models.loader import resolve_session_len
from awqkit_runtime.units import human_bytes

Weight = Tensor | QuantizedWeight | PackedWeight

#: The standard deviation of weights, small enough for activations to stay finite.
_SPREAD = 0.02
#: That of numbers drawn evenly from 0…1.
_EVEN_SPREAD = 12**-0.5


def random_decoder(
    size: ModelSize, placement: Placement, *, session_len: int | None = None
) -> Decoder:
    """Quantized where `size` says so. All layers hold the same numbers, each its own copy of them.

    session_len: longest sequence that will run, None for the model's maximum.
    OutOfMemoryError where the weights do not fit into what is free.
    """
    _require_room(size, placement)
    config = size.config
    generator = torch.Generator(placement.device).manual_seed(0)
    layers: list[DecoderLayer] = []
    drawn: dict[tuple[str, tuple[int, ...]], Weight] = {}
    for layer in range(config.num_layers):
        block: dict[str, Weight] = {}
        for name, shape in layer_shapes(config, layer).items():
            bits = size.bits_of(layer_prefix(layer) + name) if len(shape) == 2 else None
            if (name, shape) not in drawn:
                drawn[name, shape] = _as_read(
                    _draw(name, shape, generator, config, bits=bits), placement
                )
            block[name] = _copy(drawn[name, shape])
        layers.append(DecoderLayer(config, layer, block, placement))
    shapes = canonical_shapes(config)
    outer = {
        name: _draw(name, shapes[name], generator, config, bits=size.bits_of(name))
        for name in (EMBEDDING, LM_HEAD)
        if name in shapes
    }
    outer[FINAL_NORM] = _draw(FINAL_NORM, shapes[FINAL_NORM], generator, config, bits=None)
    length = resolve_session_len(config, session_len)
    return Decoder(config, layers, outer, placement, session_len=length)


def _require_room(size: ModelSize, placement: Placement) -> None:
    weights, free = size.weights(placement), free_memory(placement.device)
    if weights <= free:
        return
    advice = "Choose a smaller shape"
    # What a folder with weights holds, no option changes.
    if size.estimated and size.form == "dense" and size.other_form().weights(placement) <= free:
        advice += ", or 4-bit weights with model_format=awq"
    raise OutOfMemoryError(
        f"Random weights of this shape take {human_bytes(weights)}, {human_bytes(free)} are free. "
        f"{advice}."
    )


def _draw(
    name: str,
    shape: tuple[int, ...],
    generator: torch.Generator,
    config: DecoderConfig,
    *,
    bits: int | None,
) -> Tensor | QuantizedWeight:
    """On the generator's device. Norms do nothing but normalise, biases nothing at all."""
    device = generator.device
    if len(shape) == 1:
        scales = name.endswith("norm.weight") and not config.norm_unit_offset
        return torch.full(shape, float(scales), device=device)
    if bits is None:
        # In BF16 at once: of a large vocabulary float32 would take gigabytes.
        weight = torch.empty(shape, dtype=torch.bfloat16, device=device)
        return weight.normal_(0, _SPREAD, generator=generator)
    groups = (shape[0], shape[1] // GROUP_SIZE)
    levels = max_code(bits) + 1
    codes = torch.randint(levels, shape, generator=generator, dtype=torch.uint8, device=device)
    scale = _SPREAD / (levels * _EVEN_SPREAD)
    return QuantizedWeight(
        codes=codes,
        scales=torch.full(groups, scale, dtype=torch.float16, device=device),
        zeros=torch.full(groups, levels // 2, dtype=torch.uint8, device=device),
        bits=bits,
    )


def _as_read(weight: Tensor | QuantizedWeight, placement: Placement) -> Weight:
    """As a checkpoint's files give it, where that saves packing it for every layer."""
    if isinstance(weight, QuantizedWeight) and placement.uses_cuda_kernels:
        return pack_weight(weight)
    return weight


def _copy(weight: Weight) -> Weight:
    """4-bit weights are laid out anew for each layer; dense ones might be shared."""
    return weight.clone() if isinstance(weight, Tensor) else weight
