"""What the engine's process says while it starts."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from awqkit_runtime.serve.worker.client import EngineClient
from tests.engine.planted_keys import FAST_PAIR, write_loud_model


def test_harm_by_4_bit_keys_is_told_in_one_sentence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = write_loud_model(tmp_path, pair=FAST_PAIR, bias=60.0)
    capfd.readouterr()
    asyncio.run(_start_and_end(folder))
    lines = capfd.readouterr().err.splitlines()
    [line] = [line for line in lines if "int4" in line]
    assert (
        line.startswith("Note: An int4 KV cache does this model harm")
        and "quant_policy k8v4" in line
    )
    assert not any(".py" in line for line in lines)


async def _start_and_end(folder: Path) -> None:
    settings = {"quant_policy": 4, "device": "cpu", "cache_max_entry_count": "64MiB"}
    client = await EngineClient.start(str(folder), settings)
    await client.close()
