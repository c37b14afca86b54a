"""The memory that all 4-bit linears of a device share, which captured graphs address."""

from __future__ import annotations

import weakref

import torch

from awqkit_runtime.kernels.w4_tiled_linear import _Scratch


def test_what_graphs_may_address_stays_when_a_later_model_needs_more() -> None:
    scratch = _Scratch(torch.device("cpu"))
    earlier = [weakref.ref(tensor) for tensor in scratch.at_least(100, 10)]
    workspace, flags = scratch.at_least(1000, 20)
    assert workspace.numel() >= 1000 and flags.numel() >= 20 and not flags.any()
    assert all(tensor() is not None for tensor in earlier)


def test_smaller_plans_share_what_is_there() -> None:
    scratch = _Scratch(torch.device("cpu"))
    largest = scratch.at_least(1000, 20)
    assert all(a is b for a, b in zip(scratch.at_least(100, 10), largest, strict=True))
