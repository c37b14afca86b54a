import pytest
import torch

from awqkit.checkpoint import ExpertsConfig
from awqkit.decoder import mix_experts, route


def experts(**fields) -> ExpertsConfig:
    shape = {"num_experts": 7, "experts_per_token": 3, "intermediate_size": 8, "layers": (0,)}
    return ExpertsConfig(**{**shape, **fields})


@pytest.mark.parametrize("norm_topk_prob", [True, False])
def test_each_token_is_the_weighted_sum_of_its_experts(norm_topk_prob: bool) -> None:
    torch.manual_seed(0)
    config = experts(norm_topk_prob=norm_topk_prob)
    x, scores = torch.randn(20, 5), torch.randn(20, 7) * 3
    matrices = torch.randn(7, 5, 5)
    mixed = mix_experts(x, scores, config, lambda expert, part: part @ matrices[expert])
    for token in range(20):
        shares = scores[token].softmax(-1)
        best = shares.argsort(descending=True)[:3]
        total = shares[best].sum() if norm_topk_prob else 1.0
        expected = sum(shares[e] / total * (x[token] @ matrices[e]) for e in best)
        torch.testing.assert_close(mixed[token], expected, rtol=1e-4, atol=1e-5)


def test_shares_are_float32_whatever_the_scores() -> None:
    chosen, shares = route(torch.randn(4, 7).bfloat16(), experts(norm_topk_prob=True))
    assert shares.dtype == torch.float32 and chosen.dtype == torch.int64
    torch.testing.assert_close(shares.sum(-1), torch.ones(4))


def test_experts_without_tokens_are_not_asked() -> None:
    scores = torch.full((6, 7), -100.0)
    scores[:, [1, 4, 5]] = torch.randn(6, 3)
    asked: list[int] = []

    def expert(number: int, part: torch.Tensor) -> torch.Tensor:
        asked.append(number)
        assert len(part) == 6
        return part

    x = torch.randn(6, 5)
    torch.testing.assert_close(mix_experts(x, scores, experts(norm_topk_prob=True), expert), x)
    assert asked == [1, 4, 5]
