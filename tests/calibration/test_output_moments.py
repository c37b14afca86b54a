from pathlib import Path

import pytest
import torch

from awqkit.calibration import output_moments as module
from awqkit.calibration.output_moments import added, output_moments
from awqkit.checkpoint import open_checkpoint
from awqkit.decoder import RotaryTables, block_forward
from tests.tiny_models import write_tiny_model

CPU = torch.device("cpu")


def gathered(folder: Path, family: str = "llama", **settings):
    checkpoint = open_checkpoint(write_tiny_model(folder, family, **settings))
    config = checkpoint.config
    rotary = RotaryTables(config, 24, CPU)
    block = checkpoint.block(0)
    torch.manual_seed(0)
    entering = torch.randn(6, 24, config.hidden_size)
    linears = [n.removesuffix(".weight") for n in block if n.endswith("_proj.weight")]

    def run(weights, x):
        return block_forward(weights, config, 0, x, rotary.of(0))

    def gather(seed: int = 0):
        sums = output_moments(run, block, entering, linears=linears, seed=seed)
        return {name: tuple(part / (6 * 24) for part in parts) for name, parts in sums.items()}

    return gather, run, block, entering


def test_tells_what_an_error_costs_on_average(tmp_path: Path, monkeypatch) -> None:
    """Of many small errors in the outputs of q, the block's output moves by what G says."""
    gather, run, block, entering = gathered(tmp_path / "model")
    monkeypatch.setattr(module, "STEP_TOKENS", 24)
    draws = [gather(seed)["self_attn.q_proj"][0] for seed in range(24)]
    moments = torch.stack(draws).mean(0)
    torch.manual_seed(1)
    told = measured = 0.0
    before = run(block, entering)
    for _ in range(24):
        # An error of the weight's own input, the same for every token, so that only G matters.
        error = 1e-3 * torch.randn(len(moments))
        biased = dict(block) | {"self_attn.q_proj.bias": error}
        measured += float((run(biased, entering) - before).square().sum() / (6 * 24))
        told += float(error @ moments @ error)
    assert measured == pytest.approx(told, rel=0.35)


@pytest.mark.parametrize("family", ["gemma2", "qwen3", "mixtral"])
def test_every_linear_has_its_moments(tmp_path: Path, family: str) -> None:
    gather, _, block, _ = gathered(tmp_path / "model", family)
    moments = gather()
    for name in (n for n in block if n.endswith("_proj.weight")):
        (of_linear,) = moments[name.removesuffix(".weight")]
        assert of_linear.shape == (len(block[name]), len(block[name]))
        assert torch.linalg.eigvalsh(of_linear.double()).min() > -1e-6 * of_linear.trace()
        assert of_linear.trace() > 0


def test_down_is_added_to_the_output_as_it_is(tmp_path: Path) -> None:
    gather, *_ = gathered(tmp_path / "model")
    (found,) = gather()["mlp.down_proj"]
    assert torch.allclose(found, torch.eye(len(found)), atol=0.5)
    assert float(found.diagonal().mean()) == pytest.approx(1.0, rel=0.05)


def test_wide_outputs_are_gathered_in_blocks(tmp_path: Path, monkeypatch) -> None:
    gather, *_ = gathered(tmp_path / "model")
    (whole,) = gather()["mlp.up_proj"]
    monkeypatch.setattr(module, "MOST_ROWS", 100)
    parts = gather()["mlp.up_proj"]
    assert [len(part) for part in parts] == [86, 85, 85]
    start = 0
    for part in parts:
        end = start + len(part)
        assert torch.allclose(part, whole[start:end, start:end], rtol=1e-4, atol=1e-6)
        start = end


@pytest.mark.parametrize("seed", [0, 1])
def test_the_draw_is_the_seeds(tmp_path: Path, seed: int) -> None:
    gather, *_ = gathered(tmp_path / "model")
    first, again, other = gather(seed), gather(seed), gather(seed + 7)
    assert torch.equal(first["mlp.up_proj"][0], again["mlp.up_proj"][0])
    assert not torch.equal(first["mlp.up_proj"][0], other["mlp.up_proj"][0])


def test_sums_of_two_batches_add_up(tmp_path: Path) -> None:
    gather, *_ = gathered(tmp_path / "model")
    first, second = gather(0), gather(1)
    expected = first["mlp.up_proj"][0] + second["mlp.up_proj"][0]
    (found,) = added(added({}, first), second)["mlp.up_proj"]
    assert torch.equal(found, expected)
    assert added({}, {"only": (expected,)}) == {"only": (expected,)}
