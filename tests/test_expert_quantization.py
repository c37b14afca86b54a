"""Mixtures of experts: what each expert is quantized for, also where it saw too few tokens."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import awqkit.moment_batches as moment_batches
import awqkit.site_scale as site_scale
from awqkit import QuantConfig, quantize
from awqkit.checkpoint import DecoderConfig, open_checkpoint
from awqkit.decoder import mlp_half
from awqkit.expert_tokens import MIN_EXPERT_TOKENS, starved_experts
from awqkit.inspection import show
from awqkit.ranks.ranks import ALONE
from awqkit.search.fold import fold
from awqkit.search.sites import mlp_sites
from awqkit_runtime import load
from tests.checkpoint.folders import edit_tensors
from tests.tiny_models import EXPERT_FAMILIES, write_tiny_model

#: Enough that every expert of the tiny models is judged by tokens of its own.
ENOUGH = {"calib_samples": 64, "calib_seqlen": 64}


def converted(source: Path, out: Path, **settings):
    config = QuantConfig(**{**ENOUGH, "quality": "fast", **settings})
    return quantize(source, out, config, calib_dataset="self", device="cpu")


def one_layer(folder: Path, family: str, **overrides: Any) -> Path:
    shape = {"num_hidden_layers": 1, **overrides}
    return write_tiny_model(folder, family, dtype=torch.bfloat16, **shape)


def sparse_block(tmp_path: Path, family: str) -> tuple[DecoderConfig, dict[str, torch.Tensor]]:
    checkpoint = open_checkpoint(write_tiny_model(tmp_path / "model", family))
    return checkpoint.config, checkpoint.block(0)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("family", "quality"), list(zip(EXPERT_FAMILIES, ("fast", "balanced", "balanced"), strict=True))
)
def test_experts_are_quantized_and_the_routers_are_not(
    tmp_path: Path, family: str, quality: str
) -> None:
    source = one_layer(tmp_path / "model", family)
    report = converted(source, tmp_path / "out", quality=quality)
    result = open_checkpoint(tmp_path / "out")
    experts = [name for name in result.names() if "experts." in name]
    assert len(experts) == 4 * 3
    assert all(result.is_quantized(name) for name in experts)
    assert not any(result.is_quantized(n) for n in result.names() if "router" in n or "_gate." in n)
    assert report.starved == ()
    assert report.evaluation is not None
    assert 0 < report.evaluation.quantized.kl < report.evaluation.nearest.kl


@pytest.mark.parametrize("family", EXPERT_FAMILIES)
def test_one_scale_for_all_experts_leaves_the_function_alone(tmp_path: Path, family: str) -> None:
    config, block = sparse_block(tmp_path, family)
    x = torch.randn(2, 40, 128, generator=torch.Generator().manual_seed(1))
    expected = mlp_half(block, config, 0, x)
    folded = dict(block)
    for number, site in enumerate(mlp_sites(block)):
        width = block[f"{site.linears[0]}.weight"].shape[1]
        generator = torch.Generator().manual_seed(number)
        folded = fold(folded, site, config, torch.rand(width, generator=generator) * 4 + 0.2)
    assert not torch.equal(folded["mlp.router.weight"], block["mlp.router.weight"])
    torch.testing.assert_close(mlp_half(folded, config, 0, x), expected, rtol=1e-4, atol=1e-4)


def test_an_expert_is_observed_by_its_own_tokens_or_by_all(tmp_path: Path) -> None:
    config, block = sparse_block(tmp_path, "qwen2_moe")
    x = torch.randn(1, 50, 128, generator=torch.Generator().manual_seed(2))

    def counts(show_all: tuple[int, ...]) -> tuple[dict[str, int], torch.Tensor]:
        seen: dict[str, int] = {}

        def observe(site: str, tokens: torch.Tensor) -> None:
            seen[site] = seen.get(site, 0) + tokens.flatten(0, -2).shape[0]

        out = mlp_half(block, config, 0, x, observe=observe, show_all=show_all)
        return seen, out

    routed, out = counts(())
    assert sum(routed[f"mlp.experts.{expert}.down"] for expert in range(4)) == 2 * 50
    assert routed["mlp.shared_expert.gate_up"] == routed["gate_up"] == 50
    shown, same = counts((1,))
    assert shown["mlp.experts.1.gate_up"] == shown["mlp.experts.1.down"] == 50
    assert torch.equal(out, same)
    unchanged = {site: seen for site, seen in routed.items() if ".1." not in site}
    assert {site: seen for site, seen in shown.items() if ".1." not in site} == unchanged


def test_starved_experts_are_counted(tmp_path: Path) -> None:
    config, block = sparse_block(tmp_path, "mixtral")
    few = torch.randn(1, MIN_EXPERT_TOKENS // 2, 128)
    many = torch.randn(8, 4 * MIN_EXPERT_TOKENS, 128)
    assert starved_experts(block, config, 0, (many, many[:2]), batch_size=3, ranks=ALONE) == ()
    starved = starved_experts(block, config, 0, (many, few), batch_size=3, ranks=ALONE)
    assert [each.expert for each in starved] == [0, 1, 2, 3]
    assert sum(each.tokens for each in starved) == 2 * (many.shape[:2].numel() + few.shape[1])
    dense = dataclasses.replace(config, experts=None)
    assert starved_experts(block, dense, 0, (few,), batch_size=1, ranks=ALONE) == ()


def test_an_expert_that_no_token_reaches_is_quantized_and_reported(tmp_path: Path) -> None:
    """Its score is a large negative number on every token."""

    def never_choose_expert_2(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.embed_tokens.weight"][:, 0] = 4.0
        router = tensors["model.layers.0.mlp.gate.weight"]
        router[2] = 0
        router[2, 0] = -50.0

    source = one_layer(tmp_path / "model", "qwen3_moe")
    report = converted(
        edit_tensors(source, never_choose_expert_2), tmp_path / "out", quality="balanced"
    )
    assert "model.layers.0.mlp.experts.2 (0 tokens)" in report.starved
    before, after = open_checkpoint(source), open_checkpoint(tmp_path / "out")
    for part in ("gate", "up", "down"):
        name = f"model.layers.0.mlp.experts.2.{part}_proj.weight"
        weight = after.quantized(name).dequantize()
        assert weight.isfinite().all()
        # The scales of the fold move columns, but not far.
        correlation = torch.corrcoef(
            torch.stack((weight.flatten(), before.tensor(name).float().flatten()))
        )[0, 1]
        assert correlation > 0.9


def test_few_tokens_are_no_reason_to_fail(tmp_path: Path) -> None:
    source = one_layer(tmp_path / "model", "qwen2_moe", num_experts=6)
    report = converted(source, tmp_path / "out", calib_samples=1, calib_seqlen=8)
    assert len(report.starved) == 6
    logits = load(tmp_path / "out", device="cpu")(torch.arange(3, 40).unsqueeze(0))
    assert logits.isfinite().all()


def test_moments_that_do_not_fit_together_are_gathered_in_turn(tmp_path: Path, monkeypatch) -> None:
    source = one_layer(tmp_path / "model", "mixtral")
    together = converted(source, tmp_path / "together")
    monkeypatch.setattr(moment_batches, "MAX_BYTES", 3 * 8 * 128 * 128)
    in_turn = converted(source, tmp_path / "in-turn")
    assert together.evaluation is not None and in_turn.evaluation is not None
    assert in_turn.evaluation.quantized.kl < 1.1 * together.evaluation.quantized.kl
    first, other = (
        {site.site: site for site in report.sites if site.layer == 0}
        for report in (together, in_turn)
    )
    assert first["gate_up"].scale == other["gate_up"].scale
    assert all(abs(first[s].error - other[s].error) < 0.1 * first[s].error for s in first)


def test_inspection_tells_of_the_experts(tmp_path: Path, capsys) -> None:
    show(str(one_layer(tmp_path / "model", "qwen2_moe")))
    printed = " ".join(capsys.readouterr().out.split())
    assert "experts 4 in 1 blocks, 2 for a token, intermediate 128" in printed
    assert "one shared by all tokens, intermediate 256" in printed


def test_a_scale_is_chosen_on_a_sample_of_very_many_rows(tmp_path: Path, monkeypatch) -> None:
    seen: list[int] = []
    choose = site_scale.choose_scale

    def choose_and_count(weights, *arguments, **options):
        seen.append(sum(len(weight) for weight in weights))
        assert all(len(weight) for weight in weights)
        return choose(weights, *arguments, **options)

    monkeypatch.setattr(site_scale, "choose_scale", choose_and_count)
    monkeypatch.setattr(site_scale, "MAX_SCALE_ROWS", 300)
    source = one_layer(tmp_path / "model", "mixtral")
    report = converted(source, tmp_path / "out", calib_samples=8)
    assert max(seen) <= 300 < 2 * 4 * 128
    assert report.evaluation is not None and report.evaluation.quantized.kl < 1
