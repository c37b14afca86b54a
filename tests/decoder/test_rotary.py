import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from awqkit.checkpoint import DecoderConfig, RopeConfig
from awqkit.decoder import apply_rotary, rotary_tables
from awqkit.decoder.rotary import rotary_frequencies

KINDS = {
    "linear": {"factor": 3.0},
    "dynamic": {"factor": 2.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 256, "beta_fast": 24.0},
}


def decoder(rope: RopeConfig, **changes) -> DecoderConfig:
    return DecoderConfig(
        **{
            "hidden_size": 256,
            "num_layers": 1,
            "num_heads": 4,
            "num_kv_heads": 4,
            "head_dim": 64,
            "intermediate_size": 64,
            "vocab_size": 8,
            "max_position_embeddings": 1024,
            "norm_eps": 1e-6,
            "rope": rope,
            **changes,
        }
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("session_len", [None, 512, 5000])
def test_frequencies_equal_the_transformers_library(kind: str, session_len: int | None) -> None:
    config = LlamaConfig(
        hidden_size=256,
        num_attention_heads=4,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": kind, "rope_theta": 50000.0, **KINDS[kind]},
    )
    expected, amplitude = ROPE_INIT_FUNCTIONS[kind](config, seq_len=session_len)
    ours = rotary_frequencies(
        decoder(RopeConfig(kind=kind, theta=50000.0, **KINDS[kind])), session_len=session_len
    )
    torch.testing.assert_close(ours[0], expected, rtol=1e-5, atol=0)
    assert ours[1] == pytest.approx(amplitude)


def test_dynamic_base_is_fixed_by_the_session_and_not_by_the_position() -> None:
    config = decoder(RopeConfig(kind="dynamic", factor=2.0))
    short, long = (rotary_tables(config, n, session_len=4096)[0] for n in (10, 4096))
    assert torch.equal(short, long[:10])
    assert not torch.allclose(rotary_tables(config, 10)[0], short)


def test_rotation_is_relative_and_keeps_length() -> None:
    torch.manual_seed(0)
    cos, sin = rotary_tables(decoder(RopeConfig()), 40)
    q, k = torch.randn(1, 1, 64), torch.randn(1, 1, 64)

    def product(i: int, j: int) -> torch.Tensor:
        a = apply_rotary(q, cos[i : i + 1], sin[i : i + 1])
        b = apply_rotary(k, cos[j : j + 1], sin[j : j + 1])
        return (a * b).sum()

    torch.testing.assert_close(product(7, 3), product(30, 26), rtol=1e-4, atol=1e-4)
    rotated = apply_rotary(q, cos[9:10], sin[9:10])
    torch.testing.assert_close(rotated.norm(), q.norm())


def test_partial_rotation_leaves_the_rest_alone() -> None:
    cos, sin = rotary_tables(decoder(RopeConfig(partial_rotary_factor=0.5)), 5)
    assert cos.shape == (5, 32)
    x = torch.randn(5, 2, 64)
    rotated = apply_rotary(x, cos, sin)
    assert torch.equal(rotated[..., 32:], x[..., 32:])
    assert not torch.equal(rotated[1:, :, :32], x[1:, :, :32])
