"""A decoder small enough to think about, and an engine around it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from awqkit.checkpoint import DecoderConfig
from awqkit_runtime.cache.key_frame import PLAIN_FRAME, KeyFrame
from awqkit_runtime.cache.paged_attention import PagedAttention
from awqkit_runtime.config import EngineConfig
from awqkit_runtime.engine import engine as engine_module
from awqkit_runtime.engine.engine import Engine
from awqkit_runtime.engine.request import Completion, RequestOutput
from awqkit_runtime.engine.sampling_params import SamplingParams

VOCAB = 89
HEAD_DIM = 16


class OneLayerDecoder:
    """Embedding plus position, one attention layer, head. Keys depend on token and position alone,
    so pages hold the same bits however a sequence was split or batched."""

    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, *, session_len: int = 512, seed: int = 0) -> None:
        self.config = DecoderConfig(
            hidden_size=4 * HEAD_DIM,
            num_layers=1,
            num_heads=4,
            num_kv_heads=2,
            head_dim=HEAD_DIM,
            intermediate_size=64,
            vocab_size=VOCAB,
            max_position_embeddings=session_len,
            norm_eps=1e-5,
            dtype="float32",
        )
        self.session_len = session_len
        generator = torch.Generator().manual_seed(seed)
        config = self.config
        shapes = {
            "tokens": (VOCAB, config.hidden_size),
            "places": (session_len, config.hidden_size),
            "q": (config.hidden_size, config.q_size),
            "kv": (config.hidden_size, 2 * config.kv_size),
            "head": (config.hidden_size, VOCAB),
        }
        self.weights = {
            name: torch.randn(shape, generator=generator) / 4 for name, shape in shapes.items()
        }
        #: New tokens of each step, as the runner brought them.
        self.steps: list[int] = []

    def hidden(self, token_ids: Tensor, positions: Tensor, state: PagedAttention) -> Tensor:
        self.steps.append(len(token_ids))
        x = self.weights["tokens"][token_ids] + self.weights["places"][positions]
        q = (x @ self.weights["q"]).unflatten(-1, (-1, HEAD_DIM))
        kv = (x @ self.weights["kv"]).unflatten(-1, (-1, HEAD_DIM))
        k, v = kv.chunk(2, dim=1)
        return x + 4 * state.attend(0, q, k, v).flatten(1)

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden @ self.weights["head"]


class NumberTokenizer:
    """Token 7 reads "7 "."""

    def decode(self, token_ids: list[int], **options: Any) -> str:
        return "".join(f"{token} " for token in token_ids)


def make_engine(
    decoder: Any = None,
    *,
    pages: int | None = None,
    stop_token_ids: Sequence[int] = (),
    tokenizer: Any = None,
    key_frame: KeyFrame = PLAIN_FRAME,
    new_runner: Any = None,
    run_ahead: bool | None = None,
    **settings: Any,
) -> Engine:
    """pages: exactly so many, whatever the settings say."""
    settings = {"cache_max_entry_count": "1GiB", "seed": 0} | settings
    with pytest.MonkeyPatch.context() as patch:
        if pages is not None:
            patch.setattr(engine_module, "cache_pages", lambda *args, **kwargs: pages)
        return Engine(
            decoder or OneLayerDecoder(),
            tokenizer or NumberTokenizer(),
            EngineConfig(**settings),
            stop_token_ids=stop_token_ids,
            key_frame=key_frame,
            new_runner=new_runner,
            run_ahead=run_ahead,
        )


def random_frame(config: DecoderConfig) -> KeyFrame:
    """With a mean key, channel scales and the rotation."""
    generator = torch.Generator().manual_seed(6)
    shape = (config.num_layers, config.num_kv_heads, config.head_dim)
    mean, logs = torch.randn(2, *shape, generator=generator)
    return KeyFrame(mean=mean, channel_scale=(logs / 2).exp(), rotated=True)


def run_all(engine: Engine) -> list[RequestOutput]:
    outputs = []
    while engine.has_unfinished():
        outputs += engine.step()
    return outputs


def generate(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams | Sequence[SamplingParams],
) -> list[Completion]:
    """All prompts at once; completions in the order of the prompts."""
    each = [params] * len(prompts) if isinstance(params, SamplingParams) else params
    ids = [engine.add_request(p, s) for p, s in zip(prompts, each, strict=True)]
    done = {o.request_id: o.completion for o in run_all(engine) if o.completion is not None}
    return [done[number] for number in ids]


def generate_alone(
    engine: Engine, prompts: Sequence[Sequence[int]], params: SamplingParams
) -> list[Completion]:
    """One prompt after the other."""
    return [generate(engine, [prompt], params)[0] for prompt in prompts]
