import pytest
import torch

from awqkit.checkpoint import ExpertsConfig, UnsupportedModelError, open_checkpoint
from awqkit.decoder import KeyValues, block_forward, require_supported, rms_norm, rotary_tables
from tests.tiny_models import write_tiny_model

WINDOW = {"sliding_window": 7}


def run(checkpoint, tokens: torch.Tensor, *, one_by_one: bool = False) -> torch.Tensor:
    """Logits [batch, T, vocab] through the decoder's blocks."""
    config = checkpoint.config
    batch, length = tokens.shape
    cos, sin = rotary_tables(config, length)
    steps = [slice(i, i + 1) for i in range(length)] if one_by_one else [slice(0, length)]
    embedding = checkpoint.tensor("model.embed_tokens.weight")
    blocks = [checkpoint.block(layer) for layer in range(config.num_layers)]
    caches = [
        KeyValues(batch, length, config.num_kv_heads, config.head_dim, embedding) for _ in blocks
    ]
    outputs = []
    for step in steps:
        x = embedding[tokens[:, step]]
        for layer, (block, cache) in enumerate(zip(blocks, caches, strict=True)):
            x = block_forward(block, config, layer, x, (cos[step], sin[step]), cache=cache)
        outputs.append(x)
    hidden = rms_norm(
        torch.cat(outputs, 1), checkpoint.tensor("model.norm.weight"), config.norm_eps
    )
    return hidden @ checkpoint.tensor("lm_head.weight").T


@pytest.mark.parametrize(
    ("family", "overrides"),
    [("llama", {}), ("mistral", WINDOW), ("qwen2", {}), ("qwen3", {})],
    ids=["llama", "mistral with a window", "qwen2", "qwen3"],
)
@pytest.mark.parametrize("one_by_one", [False, True])
def test_logits_equal_the_transformers_library(tmp_path, family, overrides, one_by_one) -> None:
    import transformers

    folder = write_tiny_model(tmp_path / "model", family, **overrides)
    tokens = torch.randint(3, 320, (2, 19), generator=torch.Generator().manual_seed(1))
    oracle = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        expected = oracle(tokens).logits
    actual = run(open_checkpoint(folder), tokens, one_by_one=one_by_one)
    assert (actual - expected).abs().max() < 1e-4


def test_features_that_are_not_computed_are_refused(tmp_path) -> None:
    from dataclasses import replace

    config = open_checkpoint(write_tiny_model(tmp_path / "model")).config
    require_supported(config)
    experts = ExpertsConfig(num_experts=8, experts_per_token=2, intermediate_size=64)
    with pytest.raises(UnsupportedModelError, match="mixture of experts"):
        require_supported(replace(config, experts=experts))
    with pytest.raises(UnsupportedModelError, match="soft caps"):
        require_supported(replace(config, final_softcap=30.0))
