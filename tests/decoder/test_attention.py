import math

import pytest
import torch

from awqkit.decoder import attend


def by_hand(q, k, v, *, scale: float, window: int | None, softcap: float | None) -> torch.Tensor:
    """One query after the other, in float64."""
    batch, heads, queries, _ = q.shape
    keys, group = k.shape[2], heads // k.shape[1]
    out = torch.zeros_like(q, dtype=torch.float64)
    for b, h, t in [(b, h, t) for b in range(batch) for h in range(heads) for t in range(queries)]:
        position = keys - queries + t
        first = 0 if window is None else max(0, position - window + 1)
        seen = slice(first, position + 1)
        scores = k[b, h // group, seen].double() @ q[b, h, t].double() * scale
        if softcap is not None:
            scores = (scores / softcap).tanh() * softcap
        out[b, h, t] = scores.softmax(0) @ v[b, h // group, seen].double()
    return out


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("queries", [1, 6, 13])
def test_attention_equals_its_definition(softcap, window, queries: int) -> None:
    torch.manual_seed(1)
    q, k, v = torch.randn(2, 4, queries, 8) * 2, torch.randn(2, 2, 13, 8), torch.randn(2, 2, 13, 8)
    options = {"scale": 1 / math.sqrt(8), "window": window, "softcap": softcap}
    actual = attend(q, k, v, **options)
    torch.testing.assert_close(actual.double(), by_hand(q, k, v, **options), rtol=1e-5, atol=1e-5)


def test_capped_attention_of_many_queries_goes_in_parts() -> None:
    torch.manual_seed(2)
    q, k, v = (torch.randn(1, 1, 600, 4) for _ in range(3))
    options = {"scale": 0.5, "window": 40, "softcap": 3.0}
    together = attend(q, k, v, **options)
    alone = attend(q[:, :, 555:], k, v, **options)
    torch.testing.assert_close(together[:, :, 555:], alone)
