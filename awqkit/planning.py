"""What can be foreseen of a conversion from a checkpoint's shapes alone."""

from __future__ import annotations

from math import prod

import torch

from awqkit.block_quantizer import quantizable_sites
from awqkit.checkpoint import Checkpoint
from awqkit.checkpoint.canonical import EMBEDDING, LM_HEAD
from awqkit.checkpoint.layout import BITS, GROUP_SIZE
from awqkit.config import QuantConfig
from awqkit.errors import QuantizationError


def check_quantizable(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Names of the linears that stay unquantized; raises where quantizing makes no sense."""
    if checkpoint.format != "hf":
        raise QuantizationError(
            f"{checkpoint.folder} is quantized already ({checkpoint.format}). "
            "Give the original model, or another --format to repack this one without loss."
        )
    unquantized = unquantized_linears(checkpoint)
    linears = [name for name in checkpoint.names() if name.endswith("_proj.weight")]
    if len(unquantized) == len(linears):
        raise QuantizationError(
            f"{checkpoint.folder}: no linear of this model has inputs that groups of 128 divide, "
            "so nothing would be quantized."
        )
    return unquantized


def unquantized_linears(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Names of the blocks' linears whose shapes no format can hold, without ".weight"."""
    names: list[str] = []
    for layer in range(checkpoint.config.num_layers):
        prefix = f"model.layers.{layer}."
        shapes = {
            name.removeprefix(prefix): checkpoint.shape(name)
            for name in checkpoint.names()
            if name.startswith(prefix)
        }
        taken = {linear for site in quantizable_sites(shapes) for linear in site.linears}
        linears = [n.removesuffix(".weight") for n in shapes if n.endswith("_proj.weight")]
        names += [prefix + linear for linear in linears if linear not in taken]
    return tuple(names)


def planned_bytes(checkpoint: Checkpoint, config: QuantConfig) -> int:
    """Bytes of all tensors that quantizing this checkpoint would write."""
    itemsize = getattr(torch, config.dtype).itemsize
    dense = {f"{name}.weight" for name in unquantized_linears(checkpoint)}
    ends = {EMBEDDING: config.embedding_bits, LM_HEAD: config.head_bits}
    total = 0
    for name in checkpoint.names():
        count = prod(checkpoint.shape(name))
        is_packed = name.endswith("_proj.weight") and name not in dense
        bits = ends.get(name, BITS if is_packed else None)
        if bits is None:
            total += count * itemsize
        else:
            groups = count // GROUP_SIZE
            total += (count + groups) * bits // 8 + groups * torch.float16.itemsize
    return total
