from dataclasses import replace

import pytest
import torch

from awqkit import QuantConfig, quantize
from awqkit.block_timing import Timed, faster
from awqkit.checkpoint import open_checkpoint
from awqkit.config import Quality
from awqkit.forecast import _sample as sample
from awqkit.forecast import forecast
from tests.tiny_models import write_tiny_model

CPU = torch.device("cpu")
CONFIG = QuantConfig(calib_samples=6, calib_seqlen=32, batch_size=2)


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch) -> None:
    monkeypatch.setattr("awqkit.forecast.ROW_SECONDS", 0.02)
    monkeypatch.setattr("awqkit.forecast.SECONDS_TO_TIME_AGAIN", 0.0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forecast") / "model"
    return open_checkpoint(write_tiny_model(folder, dtype=torch.bfloat16))


@pytest.mark.parametrize(
    ("source", "quality"), [("self", "fast"), ("pileval", "balanced"), ("pileval", "best")]
)
def test_tells_every_stage_of_a_conversion(
    checkpoint, tmp_path, source: str, quality: Quality
) -> None:
    config = replace(CONFIG, quality=quality)
    told = forecast(checkpoint, config, calib_dataset=source, device=CPU)
    report = quantize(
        checkpoint.folder, tmp_path / "out", config, calib_dataset="self", device="cpu"
    )
    # What a journal takes depends on how slow the conversion is.
    assert report.seconds.keys() - {"journal"} <= told.seconds.keys()
    assert all(seconds >= 0 for seconds in told.seconds.values())
    assert told.text_is_counted == (source == "self")
    assert (told.seconds["calibration text"] > 0) == (source == "self")
    assert told.peak_bytes["memory"] == pytest.approx(report.peak_bytes["memory"], rel=0.25)


def test_more_rows_take_more_time_and_memory(checkpoint) -> None:
    few = forecast(checkpoint, CONFIG, calib_dataset="pileval", device=CPU)
    many = forecast(
        checkpoint,
        replace(CONFIG, calib_samples=1_000_000),
        calib_dataset="pileval",
        device=CPU,
    )
    assert many.seconds["moments"] > 1000 * few.seconds["moments"]
    rows = 2 * 1_000_000 * 32 * checkpoint.config.hidden_size * 4
    assert rows < many.peak_bytes["memory"] < 1.2 * rows + few.peak_bytes["memory"]


def test_more_processes_take_less_time_for_rows_and_more_memory_in_all(checkpoint) -> None:
    config = replace(CONFIG, calib_samples=1_000_000, evaluate=False)
    one, four = (
        forecast(checkpoint, config, calib_dataset="pileval", device=CPU, processes=count)
        for count in (1, 4)
    )
    rows = 2 * 1_000_000 * 32 * checkpoint.config.hidden_size * 4
    base = one.peak_bytes["memory"] - rows
    assert four.peak_bytes["memory"] == pytest.approx(rows + 4 * base, rel=0.1)
    # Timings of two runs differ, on a busy machine by much; four times the rows do so by more.
    assert four.seconds["moments"] < one.seconds["moments"]


def test_the_faster_of_two_timings_counts_stage_by_stage() -> None:
    calm = Timed({"moments": 1.0, "scales": 5.0}, {"evaluation": 1.0}, 0.2)
    busy = Timed({"moments": 9.0, "scales": 2.0}, {"evaluation": 3.0}, 0.1)
    assert faster(calm, busy) == Timed({"moments": 1.0, "scales": 2.0}, {"evaluation": 1.0}, 0.1)


def test_few_rows_are_timed_as_they_are(checkpoint, monkeypatch) -> None:
    monkeypatch.setattr("awqkit.forecast.ROW_SECONDS", 1e6)
    rows = sample(checkpoint.config, CONFIG, CPU)
    assert rows.tokens.shape == (6, 32) and rows.held_out.shape == (2, 32)
    assert int(rows.tokens.max()) < checkpoint.config.vocab_size
    without = sample(checkpoint.config, replace(CONFIG, evaluate=False), CPU)
    assert len(without.held_out) == 0
