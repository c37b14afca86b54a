"""What of a model runs in torch on this placement, for want of a kernel."""

from __future__ import annotations

import warnings

from awqkit.checkpoint import DecoderConfig
from awqkit.checkpoint.layout import WIDE_BITS
from awqkit_runtime.layers.placement import Placement


def reference_paths(
    config: DecoderConfig, placement: Placement, *, head_bits: int | None = None
) -> tuple[str, ...]:
    """The parts of this model that are slower than they could be, in words; often none.

    head_bits: of the head's codes; None where it is dense.
    """
    parts: list[str] = []
    if config.experts is not None:
        parts.append("experts, which run one after the other")
    if config.attention_softcap is not None:
        parts.append("attention with a soft cap on its scores")
    if config.activation != "silu" and placement.uses_cuda_kernels:
        parts.append("the activation of the MLP")
    if head_bits == WIDE_BITS:
        parts.append("a head in 8 bits, which is unpacked for each step")
    return tuple(parts)


def say_what_runs_in_torch(
    config: DecoderConfig, placement: Placement, *, head_bits: int | None = None
) -> None:
    """Warn where the model or parts of it are slower than they could be."""
    could_use_kernels = placement.device.type == "cuda" and placement.has_cuda_kernels
    if could_use_kernels and not placement.uses_cuda_kernels:
        name = str(placement.dtype).removeprefix("torch.")
        warnings.warn(
            f"The CUDA kernels compute in bfloat16 and this model in {name}, so it runs in plain "
            "torch, many times slower. Choose bfloat16 with dtype, unless you want just that.",
            stacklevel=4,
        )
    parts = reference_paths(config, placement, head_bits=head_bits)
    if parts:
        warnings.warn(
            f"There is no kernel yet for parts of this model: {'; '.join(parts)}. They run in "
            "plain torch, with the same results but slower.",
            stacklevel=4,
        )
