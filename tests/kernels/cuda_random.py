"""Random weights and inputs, and poisoned outputs, for the tests of the CUDA kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from awqkit.checkpoint import QuantizedWeight
from awqkit.checkpoint.layout import GROUP_SIZE, MAX_CODE


def random_weight(
    out_features: int, in_features: int, seed: int, device: str = "cpu"
) -> QuantizedWeight:
    """Codes, zero points and FP16 scales at random; every fourth group is one-signed."""
    generator = torch.Generator(device).manual_seed(seed)
    groups = (out_features, in_features // GROUP_SIZE)
    zeros = torch.randint(
        MAX_CODE + 1, groups, generator=generator, dtype=torch.uint8, device=device
    )
    zeros.view(-1)[::8], zeros.view(-1)[4::8] = 0, MAX_CODE
    scales = 0.001 + 0.03 * torch.rand(groups, generator=generator, device=device)
    codes = torch.randint(
        MAX_CODE + 1,
        (out_features, in_features),
        generator=generator,
        dtype=torch.uint8,
        device=device,
    )
    return QuantizedWeight(codes=codes, scales=scales.half(), zeros=zeros)


def random_bf16(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    """Normal numbers on the GPU."""
    generator = torch.Generator("cuda").manual_seed(seed)
    return (torch.randn(*shape, generator=generator, device="cuda") * scale).bfloat16()


def random_fp32(*shape: int, seed: int) -> Tensor:
    """Normal numbers on the GPU, in float32."""
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(*shape, generator=generator, device="cuda")
