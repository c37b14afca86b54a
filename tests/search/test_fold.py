import pytest
import torch

from awqkit.checkpoint import DecoderConfig
from awqkit.decoder import attention_half, mlp_half, rotary_tables
from awqkit.search.fold import fold, realised_norm_scale
from awqkit.search.sites import attention_sites, mlp_sites, tie_channels


def decoder(**changes) -> DecoderConfig:
    settings = {
        "hidden_size": 128,
        "num_layers": 1,
        "num_heads": 8,
        "num_kv_heads": 2,
        "head_dim": 16,
        "intermediate_size": 256,
        "vocab_size": 32,
        "max_position_embeddings": 64,
        "norm_eps": 1e-5,
    }
    return DecoderConfig(**{**settings, **changes})


def random_block(config: DecoderConfig) -> dict[str, torch.Tensor]:
    h, m, q, kv = config.hidden_size, config.intermediate_size, config.q_size, config.kv_size
    shapes = {
        "self_attn.q_proj": (q, h),
        "self_attn.k_proj": (kv, h),
        "self_attn.v_proj": (kv, h),
        "self_attn.o_proj": (h, q),
        "mlp.gate_proj": (m, h),
        "mlp.up_proj": (m, h),
        "mlp.down_proj": (h, m),
    }
    block = {f"{name}.weight": torch.randn(shape) / 8 for name, shape in shapes.items()}
    block["self_attn.v_proj.bias"] = torch.randn(kv)
    block["mlp.up_proj.bias"] = torch.randn(m)
    block["input_layernorm.weight"] = torch.rand(h) + 0.5
    block["post_attention_layernorm.weight"] = torch.rand(h) + 0.5
    return block


SITES = (*attention_sites(), *mlp_sites(()))


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.name)
@pytest.mark.parametrize("unit_offset", [False, True])
def test_folded_block_computes_the_same(site, unit_offset: bool) -> None:
    torch.manual_seed(0)
    config = decoder(norm_unit_offset=unit_offset)
    block = random_block(config)
    width = block[f"{site.linears[0]}.weight"].shape[1]
    scale = tie_channels(site, config, torch.rand(width) * 4 + 0.2)
    folded = fold(block, site, config, scale)
    x, rotary = torch.randn(2, 10, 128), rotary_tables(config, 10)

    def run(weights):
        if site in attention_sites():
            return attention_half(weights, config, 0, x, rotary)
        return mlp_half(weights, config, 0, x)

    torch.testing.assert_close(run(folded), run(block), rtol=1e-4, atol=1e-4)
    changed = f"{site.linears[0]}.weight"
    assert not torch.equal(folded[changed], block[changed])


def test_tied_channels_agree_over_the_queries_of_a_value_head() -> None:
    config = decoder()
    tied = tie_channels(SITES[1], config, torch.rand(128)).view(2, 4, 16)
    assert torch.equal(tied, tied[:, :1].expand_as(tied))


def test_realised_scale_is_what_the_stored_norm_gives() -> None:
    torch.manual_seed(1)
    weight, scale = torch.randn(512).bfloat16().float(), torch.rand(512) * 3 + 0.1
    realised = realised_norm_scale(weight, scale, torch.bfloat16)
    stored = weight / realised
    torch.testing.assert_close(stored.bfloat16().float(), stored, rtol=1e-6, atol=0)
    torch.testing.assert_close(realised, scale, rtol=2.0**-8, atol=0)


def test_norm_weights_of_zero_keep_scale_one() -> None:
    weight = torch.tensor([0.0, 1.0, 1e-30, 0.0])
    realised = realised_norm_scale(weight, torch.full((4,), 2.0), torch.float16)
    assert realised.tolist() == [1.0, 2.0, 1.0, 1.0]
    assert (weight / realised).isfinite().all()
