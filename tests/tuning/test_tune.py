from pathlib import Path

import pytest
import torch

from awqkit.checkpoint import QuantizedWeight, open_checkpoint
from awqkit.checkpoint.layout import is_quantizable
from awqkit.decoder import RotaryTables, block_forward, embed
from awqkit.search.affine import (
    GroupGrid,
    in_groups,
    min_max_grid,
    nearest_codes,
    rounding_offsets,
    to_quantized_weight,
)
from awqkit.tuning import tune as module
from awqkit.tuning.blocks import TunedBlocks
from awqkit.tuning.divergence import Readout
from awqkit.tuning.tune import TuningRows, tune
from tests.tiny_models import write_tiny_model

CPU = torch.device("cpu")


class Setting:
    """A tiny model rounded to nearest, and rows with what the original makes of them."""

    def __init__(self, folder: Path, family: str, **shape) -> None:
        checkpoint = open_checkpoint(write_tiny_model(folder, family, **shape))
        config = self.config = checkpoint.config
        self.rotary = RotaryTables(config, 32, CPU)
        originals = [checkpoint.block(layer) for layer in range(config.num_layers)]
        self.blocks = [{n: nearest(n, w) for n, w in block.items()} for block in originals]
        self.offsets = [
            {n: offsets(w, block[n]) for n, w in stored.items() if isinstance(w, QuantizedWeight)}
            for stored, block in zip(self.blocks, originals, strict=True)
        ]
        torch.manual_seed(0)
        tokens = torch.randint(0, config.vocab_size, (24, 32))
        embedding = checkpoint.tensor("model.embed_tokens.weight")
        embedded = x = embed(tokens, embedding, config, torch.float32)
        for layer, block in enumerate(originals):
            x = block_forward(block, config, layer, x, self.rotary.of(layer))
        self.search = TuningRows(embedded=embedded[8:], original=x[8:])
        self.judge = TuningRows(embedded=embedded[:8], original=x[:8])
        tied = config.tie_word_embeddings
        self.readout = Readout(
            config=config,
            norm=checkpoint.tensor("model.norm.weight"),
            head=embedding if tied else checkpoint.tensor("lm_head.weight"),
        )

    def model(self) -> TunedBlocks:
        return TunedBlocks(
            self.blocks, self.offsets, self.config, self.rotary, device=CPU, dtype=torch.float32
        )

    def tuned(self, **changes):
        rows = {"search": self.search, "judge": self.judge, **changes}
        with torch.no_grad():
            return tune(
                self.blocks, self.model(), self.readout, **rows, seed=0, on_step=lambda *_: None
            )


def nearest(name: str, weight: torch.Tensor) -> torch.Tensor | QuantizedWeight:
    if not (name.endswith("_proj.weight") and is_quantizable(*weight.shape)):
        return weight
    grid = min_max_grid(weight)
    return to_quantized_weight(nearest_codes(in_groups(weight), grid).flatten(-2), grid)


def offsets(stored: QuantizedWeight, weight: torch.Tensor) -> torch.Tensor:
    grid = GroupGrid(stored.scales.float(), stored.zeros.float())
    return rounding_offsets(weight, stored.codes.float(), grid)


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    monkeypatch.setattr(module, "STEP_TOKENS", 128)
    monkeypatch.setattr(module, "TRAVEL", 0.7)
    monkeypatch.setattr(module, "EPOCHS", 12)
    monkeypatch.setattr(module, "LEAST_STEPS", 1)


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen2_moe"])
def test_comes_closer_to_the_original(tmp_path: Path, family: str) -> None:
    setting = Setting(tmp_path / "model", family, num_hidden_layers=2)
    tuned, tuning = setting.tuned(judge=setting.search)
    assert tuning.kept > 0 and tuning.by_pass[tuning.kept] == min(tuning.by_pass)
    assert tuning.by_pass[tuning.kept] < 0.9 * tuning.by_pass[0]
    assert 0 < tuning.changed < 0.5
    kept = [w for block in tuned for w in block.values() if isinstance(w, QuantizedWeight)]
    assert all(weight.codes.max() <= 15 for weight in kept)


def test_judging_rows_can_veto(tmp_path: Path) -> None:
    setting = Setting(tmp_path / "model", "llama")
    # What the rounded model itself gives: nothing can come closer to it.
    with torch.no_grad():
        original = setting.model().forward(setting.judge.embedded)
    judge = TuningRows(embedded=setting.judge.embedded, original=original)
    tuned, tuning = setting.tuned(judge=judge)
    assert tuning.kept == 0 and tuning.changed == 0
    for before, after in zip(setting.blocks, tuned, strict=True):
        for name, weight in before.items():
            if isinstance(weight, QuantizedWeight):
                assert torch.equal(weight.codes, after[name].codes)


def test_the_same_seed_gives_the_same_codes(tmp_path: Path) -> None:
    setting = Setting(tmp_path / "model", "llama")
    (first, one), (second, other) = setting.tuned(), setting.tuned()
    assert one == other
    for before, after in zip(first, second, strict=True):
        for name, weight in before.items():
            if isinstance(weight, QuantizedWeight):
                assert torch.equal(weight.codes, after[name].codes)


def test_what_is_not_quantized_stays(tmp_path: Path) -> None:
    setting = Setting(tmp_path / "model", "llama")
    tuned, _ = setting.tuned()
    for before, after in zip(setting.blocks, tuned, strict=True):
        assert before.keys() == after.keys()
        for name, weight in before.items():
            if isinstance(weight, torch.Tensor):
                assert after[name] is weight
            else:
                assert torch.equal(after[name].scales, weight.scales)


def test_few_rows_take_as_many_steps(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "EPOCHS", 2)
    monkeypatch.setattr(module, "LEAST_STEPS", 16)
    setting = Setting(tmp_path / "model", "llama")  # 16 rows of 32 tokens, at most four a step
    steps: list[tuple[int, int]] = []
    with torch.no_grad():
        tune(
            setting.blocks,
            setting.model(),
            setting.readout,
            search=setting.search,
            judge=setting.judge,
            seed=0,
            on_step=lambda *step: steps.append(step),
        )
    assert steps == [(number, 16) for number in range(1, 17)]
    assert sum(module._rates(16)) == pytest.approx(module.TRAVEL)
