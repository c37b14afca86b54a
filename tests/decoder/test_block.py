import pytest
import torch

from awqkit.checkpoint import open_checkpoint
from awqkit.decoder import KeyValues, RotaryTables, block_forward, embed, final_logits
from tests.tiny_models import write_tiny_model

WINDOW = {"sliding_window": 7}


def run(checkpoint, tokens: torch.Tensor, *, one_by_one: bool = False) -> torch.Tensor:
    """Logits [batch, T, vocab] through the decoder's blocks."""
    config = checkpoint.config
    batch, length = tokens.shape
    rotary = RotaryTables(config, length, "cpu")
    steps = [slice(i, i + 1) for i in range(length)] if one_by_one else [slice(0, length)]
    embedding = checkpoint.tensor("model.embed_tokens.weight")
    blocks = [checkpoint.block(layer) for layer in range(config.num_layers)]
    caches = [
        KeyValues(batch, length, config.num_kv_heads, config.head_dim, embedding) for _ in blocks
    ]
    outputs = []
    for step in steps:
        x = embed(tokens[:, step], embedding, config, torch.float32)
        for layer, (block, cache) in enumerate(zip(blocks, caches, strict=True)):
            cos, sin = rotary.of(layer)
            x = block_forward(block, config, layer, x, (cos[step], sin[step]), cache=cache)
        outputs.append(x)
    norm = checkpoint.tensor("model.norm.weight")
    head = embedding if config.tie_word_embeddings else checkpoint.tensor("lm_head.weight")
    return final_logits(torch.cat(outputs, 1), norm, head, config)


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama", {}),
        ("mistral", WINDOW),
        ("qwen2", {}),
        ("qwen3", {}),
        ("phi3", WINDOW),
        ("gemma2", WINDOW),
        ("gemma3", WINDOW),
        ("mixtral", {}),
        ("qwen2_moe", {}),
        ("qwen3_moe", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("one_by_one", [False, True])
def test_logits_equal_the_transformers_library(tmp_path, family, overrides, one_by_one) -> None:
    import transformers

    folder = write_tiny_model(tmp_path / "model", family, **overrides)
    tokens = torch.randint(3, 320, (2, 19), generator=torch.Generator().manual_seed(1))
    oracle = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        expected = oracle(tokens).logits
    actual = run(open_checkpoint(folder), tokens, one_by_one=one_by_one)
    assert (actual - expected).abs().max() < 1e-4
