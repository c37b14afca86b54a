from pathlib import Path

import pytest
import torch

from awqkit.checkpoint import open_checkpoint
from awqkit.decoder import RotaryTables, embed
from awqkit.decoder import linear as decoder_linear
from awqkit.tuning import output_moments as module
from awqkit.tuning.divergence import Readout, sampled_gradient
from awqkit.tuning.output_moments import output_moments
from tests.tiny_models import write_tiny_model

CPU = torch.device("cpu")
LINEARS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")


def gathered(folder: Path, family: str = "llama", **settings):
    checkpoint = open_checkpoint(write_tiny_model(folder, family, **settings))
    config = checkpoint.config
    head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    readout = Readout(
        config=config, norm=checkpoint.tensor("model.norm.weight"), head=checkpoint.tensor(head)
    )
    torch.manual_seed(0)
    tokens = torch.randint(0, config.vocab_size, (6, 24))
    embedded = embed(tokens, checkpoint.tensor("model.embed_tokens.weight"), config, torch.float32)
    blocks = [checkpoint.block(layer) for layer in range(config.num_layers)]
    rotary = RotaryTables(config, 24, CPU)

    def names(block) -> list[str]:
        return [n.removesuffix(".weight") for n in block if n.endswith("_proj.weight")]

    def gather(seed: int = 0):
        with torch.no_grad():
            return output_moments(
                blocks, config, rotary, readout, embedded, linears=names, seed=seed
            )

    return gather, (blocks, config, rotary, readout, embedded)


def test_agrees_with_the_gradient_by_an_added_output(tmp_path: Path, monkeypatch) -> None:
    """Whose gradient is the output's own, summed over the tokens where there is but one."""
    gather, (blocks, config, rotary, readout, embedded) = gathered(tmp_path / "model")
    monkeypatch.setattr(module, "STEP_TOKENS", 1 << 20)
    moments = gather()
    x = embedded
    added = torch.zeros(6, 24, 128, requires_grad=True)
    plain = decoder_linear.F.linear

    def with_added(x, weight, bias=None):
        out = plain(x, weight, bias)
        return out + added if weight is blocks[1]["mlp.down_proj.weight"] else out

    monkeypatch.setattr(decoder_linear.F, "linear", with_added)
    for layer, block in enumerate(blocks):
        x = module.block_forward(block, config, layer, x, rotary.of(layer))
    gradient = sampled_gradient(readout, x.detach(), torch.Generator().manual_seed(0))
    x.backward(gradient)
    flat = added.grad.flatten(0, 1)
    expected = flat.T @ flat / len(flat)
    (found,) = moments[1]["mlp.down_proj"]
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


def test_every_linear_has_its_moments(tmp_path: Path) -> None:
    gather, (blocks, *_) = gathered(tmp_path / "model", "gemma2")
    for block, moments in zip(blocks, gather(), strict=True):
        for name in (n for n in block if n.endswith("_proj.weight")):
            (of_linear,) = moments[name.removesuffix(".weight")]
            assert of_linear.shape == (len(block[name]), len(block[name]))
            assert torch.linalg.eigvalsh(of_linear.double()).min() > -1e-6 * of_linear.trace()
            assert of_linear.trace() > 0


def test_wide_outputs_are_gathered_in_blocks(tmp_path: Path, monkeypatch) -> None:
    gather, _ = gathered(tmp_path / "model")
    (whole,) = gather()[0]["mlp.up_proj"]
    monkeypatch.setattr(module, "MOST_ROWS", 100)
    parts = gather()[0]["mlp.up_proj"]
    assert [len(part) for part in parts] == [86, 85, 85]
    start = 0
    for part in parts:
        end = start + len(part)
        assert torch.allclose(part, whole[start:end, start:end], rtol=1e-4, atol=1e-6)
        start = end


@pytest.mark.parametrize("seed", [0, 1])
def test_the_draw_is_the_seeds(tmp_path: Path, seed: int) -> None:
    gather, _ = gathered(tmp_path / "model")
    first, again, other = gather(seed), gather(seed), gather(seed + 7)
    assert torch.equal(first[0]["mlp.up_proj"][0], again[0]["mlp.up_proj"][0])
    assert not torch.equal(first[0]["mlp.up_proj"][0], other[0]["mlp.up_proj"][0])
