"""A model that has parts without a kernel says so once it is loaded, and no other does."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from awqkit_runtime.models.loader import load_decoder
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
