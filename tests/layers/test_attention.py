"""What the attention layer hands to a state: finished heads, or projections as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from awqkit_runtime.kernels.rotary import HeadNorms
from awqkit_runtime.layers.attention import Attention, DenseAttention
from awqkit_runtime.models.loader import load_decoder
from tests.tiny_models import write_tiny_model

TOKENS = 5


class Recorder(DenseAttention):
    """Keeps what it is asked to attend, and gives back the queries as they are."""

    def __init__(self, attention: Attention, head_dim: int, *, takes_projections: bool) -> None:
        self.asked: tuple[Tensor | int | HeadNorms | None, ...] = ()
        self._heads, self._head_dim = attention._num_heads[0], head_dim
        self.attend_projected = self._attend_projected if takes_projections else None  # type: ignore[assignment]

    def _attend_projected(
        self, layer: int, qkv: Tensor, cos: Tensor, sin: Tensor, norms: HeadNorms | None
    ) -> Tensor:
        self.asked = (layer, qkv, cos, sin, norms)
        return qkv.unflatten(-1, (-1, self._head_dim))[:, : self._heads]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.asked = (layer, q, k, v)
        return q


@pytest.fixture(params=["llama", "qwen3"])
def attention(request: pytest.FixtureRequest, tmp_path: Path) -> Attention:
    decoder = load_decoder(write_tiny_model(tmp_path, request.param), device="cpu")
    layer = decoder.layers[1].attention
    assert isinstance(layer, Attention)
    return layer


def inputs(attention: Attention) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(TOKENS, 128, generator=generator)
    angles = torch.randn(TOKENS, attention._head_dim // 2, generator=generator).repeat(1, 2)
    return x, (angles.cos(), angles.sin())


def test_kernels_get_what_the_projections_gave(attention: Attention) -> None:
    attention._in_one_kernel = True
    state = Recorder(attention, attention._head_dim, takes_projections=True)
    x, rotary = inputs(attention)
    out = attention(x, rotary, state)
    layer, qkv, cos, sin, norms = state.asked
    joined = attention.qkv.joined(x)
    assert layer == 1 and torch.equal(qkv, joined)
    assert cos is rotary[0] and sin is rotary[1]
    assert (norms is not None) == bool(attention.head_norms)
    heads = attention._num_heads[0] * attention._head_dim
    torch.testing.assert_close(out, attention.o(joined[:, :heads]))


@pytest.mark.parametrize("takes", [True, False])
def test_without_kernels_no_state_is_asked_for_more(attention: Attention, takes: bool) -> None:
    assert not attention._in_one_kernel
    state = Recorder(attention, attention._head_dim, takes_projections=takes)
    x, rotary = inputs(attention)
    attention(x, rotary, state)
    assert len(state.asked) == 4
    assert [heads.shape[1] for heads in state.asked[1:]] == list(attention._num_heads)
