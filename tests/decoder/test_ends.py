import dataclasses

import pytest
import torch

from awqkit.checkpoint import DecoderConfig
from awqkit.decoder import embed, final_logits
from tests.models.test_decoder import CONFIG


def scaled(**fields) -> DecoderConfig:
    return dataclasses.replace(CONFIG, **fields)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_factor_of_embeddings_is_rounded_before_it_multiplies(dtype: torch.dtype) -> None:
    table, tokens = torch.randn(10, 6), torch.tensor([[3, 9, 0]])
    factor = 3072**0.5
    x = embed(tokens, table, scaled(embedding_scale=factor), dtype)
    assert x.dtype == dtype
    assert torch.equal(x, table[tokens].to(dtype) * torch.tensor(factor, dtype=dtype))
    assert torch.equal(embed(tokens, table, CONFIG, dtype), table[tokens].to(dtype))


def test_logits_saturate_at_their_cap() -> None:
    hidden, norm, head = torch.randn(4, 6), torch.rand(6) + 0.5, torch.randn(9, 6) * 10
    plain = final_logits(hidden, norm, head, CONFIG)
    capped = final_logits(hidden, norm, head, scaled(final_softcap=2.0))
    torch.testing.assert_close(capped, 2 * torch.tanh(plain / 2))
    assert capped.abs().max() <= 2 < plain.abs().max()
