"""Conversions that two GPUs share through NCCL: the bytes of one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from awqkit import QuantConfig, quantize
from tests.calibration.calibration_tokenizers import byte_tokenizer
from tests.integration.test_resume import digests
from tests.tiny_models import write_tiny_model
from tests.tokenizer_files import write_tokenizer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(240),
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two GPUs"),
]
CONFIG = QuantConfig(calib_samples=17, calib_seqlen=64, batch_size=2, lm_head="int4")


@pytest.mark.parametrize("family", ["llama", "qwen2_moe"])
def test_two_gpus_give_the_bytes_of_one(tmp_path: Path, family: str) -> None:
    model = write_tiny_model(tmp_path / "model", family, dtype=torch.bfloat16)
    write_tokenizer(model, byte_tokenizer())
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"The {n}th of the lines is about {n * n}." for n in range(2000)))
    for processes in (1, 2):
        out = tmp_path / f"by {processes}"
        quantize(model, out, CONFIG, calib_dataset=str(text), device="cuda", processes=processes)
    assert digests(tmp_path / "by 1") == digests(tmp_path / "by 2")
