"""A model that has parts without a kernel says so once it is loaded, and no other does."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from awqkit_runtime.layers.placement import Placement
from awqkit_runtime.models.loader import load_decoder
from awqkit_runtime.models.reference_paths import say_what_runs_in_torch
from tests.engine.fakes import OneLayerDecoder
from tests.tiny_models import write_tiny_model


@pytest.mark.parametrize(
    ("family", "part"), [("mixtral", "experts"), ("gemma2", "soft cap"), ("qwen2_moe", "experts")]
)
def test_parts_without_a_kernel_are_named(tmp_path: Path, family: str, part: str) -> None:
    folder = write_tiny_model(tmp_path, family)
    with pytest.warns(UserWarning, match=rf"no kernel yet .*{part}.* same results but slower"):
        load_decoder(folder, device="cpu")


@pytest.mark.parametrize("family", ["llama", "phi3", "gemma3"])
def test_other_models_load_in_silence(tmp_path: Path, family: str) -> None:
    folder = write_tiny_model(tmp_path, family)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_decoder(folder, device="cpu")


def place(dtype: torch.dtype, *, kernels: bool = True) -> Placement:
    return Placement(device=torch.device("cuda"), dtype=dtype, has_cuda_kernels=kernels)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_dtype_that_leaves_the_kernels_idle_is_named_with_the_cure(dtype: torch.dtype) -> None:
    with pytest.warns(UserWarning, match=rf"this model in {str(dtype)[6:]}.*Choose bfloat16"):
        say_what_runs_in_torch(OneLayerDecoder().config, place(dtype))


def test_where_kernels_run_or_cannot_no_dtype_is_named() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        say_what_runs_in_torch(OneLayerDecoder().config, place(torch.bfloat16))
        say_what_runs_in_torch(OneLayerDecoder().config, place(torch.float16, kernels=False))
