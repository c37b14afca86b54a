"""Weights on their way to where they stay."""

from __future__ import annotations

import pytest
import torch

from awqkit.checkpoint import PackedWeight
from awqkit_runtime.layers.placement import Placement

CPU = torch.device("cpu")


def test_weights_for_a_cpu_ask_nothing_of_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(tensor: torch.Tensor) -> bool:
        raise AssertionError("asked whether memory is pinned, which may start CUDA")

    monkeypatch.setattr(torch.Tensor, "is_pinned", refuse)
    placement = Placement(device=CPU, dtype=torch.bfloat16)
    parts = [torch.full((rows, 3), float(rows)) for rows in (1, 2)]
    assert placement.weight(parts[1]).dtype == torch.bfloat16
    assert placement.stacked_weight(parts).tolist() == torch.cat(parts).tolist()
    packed = PackedWeight(packed_format="awq", tensors={"scales": parts[0].half()})
    assert packed.to(CPU).tensors["scales"].tolist() == parts[0].tolist()
