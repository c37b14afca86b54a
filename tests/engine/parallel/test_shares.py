"""Ranks that share a model compute together what one computes alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from awqkit.checkpoint import Checkpoint, DecoderConfig, open_checkpoint, write_checkpoint
from awqkit_runtime.engine.parallel.communicator import Communicator
from awqkit_runtime.engine.parallel.decoder import load_share
from awqkit_runtime.engine.parallel.shares import (
    Share,
    inner_channels,
    key_rows,
    query_rows,
    shard_config,
)
from awqkit_runtime.errors import ConfigError
from awqkit_runtime.layers.attention import DenseAttention
from awqkit_runtime.models.decoder import Decoder
from awqkit_runtime.models.loader import load_decoder
from tests.checkpoint.folders import quantized_weights
from tests.models.paged_generation import generate_greedily
from tests.tiny_models import DENSE_FAMILIES, write_tiny_model

CPU = torch.device("cpu")
PROMPT = [1, *range(40, 57)]
NEW_TOKENS = 40
#: Three groups of inner channels; of the one group that o reads, each of two ranks has a half.
UNEVEN: dict[str, Any] = {"intermediate_size": 384}
FEW_KEYS: dict[str, Any] = {"num_key_value_heads": 1}


def checkpoint(folder: Path, family: str, *, quantized: bool, **shape: Any) -> Checkpoint:
    plain = open_checkpoint(write_tiny_model(folder / "plain", family, seed=5, **shape))
    if not quantized:
        return plain
    write_checkpoint(folder / "int4", quantized_weights(plain), source=plain, format="awq")
    return open_checkpoint(folder / "int4")


def shared_logits(source: Checkpoint, ids: list[int], ranks: int) -> Tensor:
    """[tokens, vocab] of a pass by several ranks, each a thread."""
    store = dist.HashStore()

    def run(rank: int) -> Tensor | None:
        share = Share(rank=rank, ranks=ranks)
        communicator = Communicator(store, share, CPU)
        decoder = load_share(source, share, communicator, device=CPU, dtype="float32")
        hidden = whole_pass(decoder, ids)
        return decoder.logits(hidden) if rank == 0 else None

    with ThreadPoolExecutor(ranks) as pool:
        logits = next(iter(pool.map(run, range(ranks))))
    assert logits is not None
    return logits


def whole_pass(decoder: Decoder, ids: list[int]) -> Tensor:
    state = DenseAttention(decoder.config, batch=1, length=len(ids), device=CPU)
    return decoder.hidden(torch.tensor(ids), torch.arange(len(ids)), state)


@pytest.mark.parametrize(
    ("family", "quantized", "shape", "ranks"),
    [
        *((family, False, {}, 2) for family in DENSE_FAMILIES),
        ("llama", True, {}, 2),
        ("llama", True, UNEVEN | FEW_KEYS, 2),
        ("llama", False, UNEVEN | FEW_KEYS, 2),
        ("llama", True, UNEVEN, 4),
        ("qwen2", True, UNEVEN, 2),
        ("gemma2", True, UNEVEN, 2),
    ],
)
def test_greedy_tokens_are_those_of_one_rank(
    tmp_path: Path, family: str, quantized: bool, shape: dict[str, Any], ranks: int
) -> None:
    source = checkpoint(tmp_path, family, quantized=quantized, **shape)
    alone = load_decoder(source, device="cpu", dtype="float32")
    ids = generate_greedily(alone, PROMPT, NEW_TOKENS, quant_policy=0)
    logits = shared_logits(source, ids[:-1], ranks)
    assert logits.argmax(dim=-1).tolist()[len(PROMPT) - 1 :] == ids[len(PROMPT) :]
    expected = alone.logits(whole_pass(alone, ids[:-1]))
    torch.testing.assert_close(logits, expected, atol=2e-4, rtol=1e-4)


def config(**changes: Any) -> DecoderConfig:
    sizes = {"num_heads": 8, "num_kv_heads": 2, "head_dim": 16, "intermediate_size": 640}
    fixed = {"hidden_size": 128, "num_layers": 1, "vocab_size": 9, "max_position_embeddings": 64}
    return DecoderConfig(**(fixed | sizes | changes), norm_eps=1e-5)


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_every_head_and_channel_has_its_place(ranks: int) -> None:
    whole = config()
    shares = [Share(rank=rank, ranks=ranks) for rank in range(ranks)]
    rows = [row for share in shares for row in query_rows(whole, share)]
    assert rows == list(range(whole.q_size))
    channels = [channel for share in shares for channel in inner_channels(whole, share)]
    assert channels == list(range(whole.intermediate_size))
    assert {row for share in shares for row in key_rows(whole, share)} == set(range(whole.kv_size))
    local = shard_config(whole, ranks)
    assert ranks == 1 or local.intermediate_size % 128 == 0
    for share in shares:
        assert len(query_rows(whole, share)) == local.q_size
        assert len(key_rows(whole, share)) == local.kv_size
        assert len(inner_channels(whole, share)) <= local.intermediate_size
        # Each query head reads the key head that it reads in the whole model.
        queries, keys = query_rows(whole, share), key_rows(whole, share)
        for head in range(local.num_heads):
            own = keys.start // 16 + head // local.queries_per_kv
            assert own == (queries.start // 16 + head) // whole.queries_per_kv


def test_what_cannot_be_shared_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"tp is 3.*8 attention heads.*Use 1 or 2 or 4 or 8\."):
        shard_config(config(), 3)
    with pytest.raises(ConfigError, match=r"tp is 2.*6 attention heads.*3 key-value"):
        shard_config(config(num_heads=6, num_kv_heads=3), 2)


def test_experts_are_refused_by_name(tmp_path: Path) -> None:
    experts = open_checkpoint(write_tiny_model(tmp_path, "mixtral")).config
    with pytest.raises(ConfigError, match=r"tp is 2.*experts"):
        shard_config(experts, 2)
