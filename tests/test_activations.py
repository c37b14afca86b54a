import pytest
import torch

from awqkit import activations
from awqkit.activations import embedded, placed
from awqkit.checkpoint import DecoderConfig

CONFIG = DecoderConfig(
    hidden_size=16,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    intermediate_size=32,
    vocab_size=50,
    max_position_embeddings=64,
    norm_eps=1e-5,
)


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_rows_are_embedded(rows: int) -> None:
    torch.manual_seed(rows)
    tokens, embedding = torch.randint(50, (rows, 7)), torch.randn(50, 16).bfloat16()
    device = torch.device("cpu")
    result = embedded(tokens, embedding, CONFIG, torch.float32, device)
    assert torch.equal(result, embedding[tokens].float())
    assert placed(result, device, beside=result) is result


@pytest.mark.gpu
def test_many_rows_wait_on_the_host(monkeypatch) -> None:
    device = torch.device("cuda")
    tokens, embedding = torch.randint(50, (4, 8)), torch.randn(50, 16)
    monkeypatch.setattr(activations, "MOST_ON_GPU", 3 * 4 * 8 * 16)
    near = embedded(tokens, embedding, CONFIG, torch.bfloat16, device)
    far = embedded(tokens, embedding, CONFIG, torch.bfloat16, device, beside=near)
    assert near.is_cuda and far.is_pinned()
    assert torch.equal(near.cpu(), far)
    assert placed(near, device, beside=near).is_pinned() and placed(far, device).is_cuda
