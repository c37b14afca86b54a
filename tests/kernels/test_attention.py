"""The attention of the kernels package against a loop over single queries in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from awqkit.decoder import attend as attend_whole
from awqkit_runtime.kernels.attention import attend, plan_attention


def attend_naively(
    q: Tensor, k: Tensor, v: Tensor, query_start: int, key_start: int, window: int | None
) -> Tensor:
    """One sequence: q [T, heads, d], k and v [S, kv_heads, d] → [T, heads, d], float64."""
    q, k, v = q.double(), k.double(), v.double()
    group = q.shape[1] // k.shape[1]
    out = torch.zeros_like(q)
    for t in range(q.shape[0]):
        position = query_start + t
        first = 0 if window is None else max(0, position - window + 1)
        seen = slice(max(first - key_start, 0), position - key_start + 1)
        for head in range(q.shape[1]):
            scores = k[seen, head // group] @ q[t, head] * 0.3
            out[t, head] = scores.softmax(0) @ v[seen, head // group]
    return out


@pytest.mark.parametrize("window", [None, 1, 5, 40, 1000])
@pytest.mark.parametrize(("queries", "contexts"), [(1, (0, 17, 80)), (9, (3, 3)), (300, (0, 21))])
@pytest.mark.parametrize("group", [1, 3])
def test_attend_equals_a_naive_loop(
    window: int | None, queries: int, contexts: tuple[int, ...], group: int
) -> None:
    generator = torch.Generator().manual_seed(queries)
    longest = max(contexts) + queries
    batch, kv_heads, head_dim = len(contexts), 2, 8
    q = torch.randn(batch, queries, kv_heads * group, head_dim, generator=generator)
    k, v = torch.randn(2, batch, longest, kv_heads, head_dim, generator=generator)
    for row, context in enumerate(contexts):  # What no query sees must not matter.
        k[row, context + queries :] = 1e4
        v[row, context + queries :] = -1e4
    blocks = plan_attention(
        contexts, [0] * batch, num_queries=queries, window=window, device=torch.device("cpu")
    )
    out = attend(q, k, v, blocks, scale=0.3)
    for row, context in enumerate(contexts):
        expected = attend_naively(q[row], k[row], v[row], context, 0, window)
        torch.testing.assert_close(out[row].double(), expected, rtol=1e-5, atol=1e-5)


def test_keys_may_start_later_than_position_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, 2, 8, generator=generator)
    k, v = torch.randn(2, 2, 12, 1, 8, generator=generator)
    blocks = plan_attention([30, 28], [22, 21], num_queries=4, window=6, device=torch.device("cpu"))
    out = attend(q, k, v, blocks, scale=0.3)
    for row, (query_start, key_start) in enumerate(((30, 22), (28, 21))):
        expected = attend_naively(q[row], k[row], v[row], query_start, key_start, 6)
        torch.testing.assert_close(out[row].double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_inputs_are_attended_in_float32_on_a_cpu(dtype: torch.dtype) -> None:
    q, k, v = torch.randn(3, 1, 20, 2, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    blocks = plan_attention([0], [0], num_queries=20, window=None, device=torch.device("cpu"))
    out = attend(q, k, v, blocks, scale=0.3)
    assert out.dtype == dtype
    assert torch.equal(out, attend(q.float(), k.float(), v.float(), blocks, scale=0.3).to(dtype))


@pytest.mark.parametrize(("queries", "context"), [(1, 90), (300, 7)])
def test_capped_scores(queries: int, context: int) -> None:
    """Against the decoder's own attention, which knows no blocks."""
    generator = torch.Generator().manual_seed(queries)
    q = torch.randn(1, queries, 6, 8, generator=generator) * 3
    k, v = torch.randn(2, 1, context + queries, 2, 8, generator=generator)
    blocks = plan_attention(
        [context], [0], num_queries=queries, window=33, device=torch.device("cpu")
    )
    out = attend(q, k, v, blocks, scale=0.3, softcap=1.5)
    expected = attend_whole(
        *(x.transpose(1, 2) for x in (q, k, v)), scale=0.3, window=33, softcap=1.5
    )
    torch.testing.assert_close(out, expected.transpose(1, 2), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(out, attend(q, k, v, blocks, scale=0.3), atol=1e-3)
