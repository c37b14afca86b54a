"""Calibration without a data set: sequences sampled from the model itself.

The way of Liu et al., 2023, "LLM-QAT", section 3.1: a random first token where the model has no
token that begins a text, then its own predictions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from awqkit.calibration.dataset import CalibrationRows, check_row_sizes, token_digest
from awqkit.checkpoint import Checkpoint, DecoderConfig, QuantizedWeight
from awqkit.decoder import KeyValues, RotaryTables, block_forward, embed, final_logits

#: Sequences that advance together, at most, and the bytes that their keys and values may take.
ROWS_AT_ONCE = 128
CACHE_BYTES = 4 << 30


def sampled_rows(
    checkpoint: Checkpoint,
    *,
    samples: int,
    seqlen: int,
    seed: int,
    held_out: int,
    device: torch.device,
    dtype: torch.dtype,
    on_token: Callable[[int, int], None],
) -> CalibrationRows:
    """Sample rows at temperature 1; needs the whole model in memory.

    on_token: called with the tokens a row has reached over all batches, and their total.
    """
    limit = checkpoint.config.max_position_embeddings
    check_row_sizes(samples=samples, seqlen=seqlen, max_length=limit)
    generator = torch.Generator(device).manual_seed(seed)
    model = _Model(checkpoint, seqlen, device, dtype)
    total = samples + held_out
    at_once = _rows_at_once(checkpoint.config, seqlen, dtype)
    batches = [min(at_once, total - first) for first in range(0, total, at_once)]
    rows: list[Tensor] = []

    def on_position(position: int) -> None:
        on_token(len(rows) * seqlen + position, len(batches) * seqlen)

    for batch in batches:
        rows.append(model.sample(batch, generator, on_position))
    tokens = torch.cat(rows).cpu()
    chosen = tokens[:samples]
    return CalibrationRows(
        tokens=chosen,
        held_out=tokens[samples:],
        digest=token_digest(chosen),
        source="sampled from the model itself",
    )


def _rows_at_once(config: DecoderConfig, seqlen: int, dtype: torch.dtype) -> int:
    row = 2 * config.kv_size * config.num_layers * seqlen * dtype.itemsize
    return max(1, min(ROWS_AT_ONCE, CACHE_BYTES // row))


class _Model:
    """The whole decoder, dense, for sampling."""

    def __init__(
        self, checkpoint: Checkpoint, seqlen: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        def dense(weight: Tensor | QuantizedWeight) -> Tensor:
            if isinstance(weight, QuantizedWeight):
                weight = weight.dequantize()
            return weight.to(device, dtype)

        self.config: DecoderConfig = checkpoint.config
        self.seqlen = seqlen
        self.embedding = dense(checkpoint.weight("model.embed_tokens.weight"))
        self.norm = dense(checkpoint.weight("model.norm.weight"))
        self.head = (
            self.embedding
            if self.config.tie_word_embeddings
            else dense(checkpoint.weight("lm_head.weight"))
        )
        self.blocks = [
            {name: dense(weight) for name, weight in checkpoint.block(layer).items()}
            for layer in range(self.config.num_layers)
        ]
        self.rotary = RotaryTables(self.config, seqlen, device)

    def sample(
        self, batch: int, generator: torch.Generator, on_position: Callable[[int], None]
    ) -> Tensor:
        """int64 [batch, seqlen]."""
        config = self.config
        tokens = torch.empty(batch, self.seqlen, dtype=torch.long, device=self.embedding.device)
        tokens[:, 0] = self._first(batch, generator)
        caches = [
            KeyValues(batch, self.seqlen, config.num_kv_heads, config.head_dim, self.embedding)
            for _ in self.blocks
        ]
        for position in range(1, self.seqlen):
            logits = self._step(tokens[:, position - 1], position - 1, caches)
            probabilities = torch.softmax(logits.float(), dim=-1)
            drawn = torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
            ended = torch.isin(tokens[:, position - 1], self._ends())
            tokens[:, position] = torch.where(ended, self._first(batch, generator), drawn)
            on_position(position + 1)
        return tokens

    def _step(self, token: Tensor, position: int, caches: list[KeyValues]) -> Tensor:
        """Logits [batch, vocab] after token [batch] at position."""
        x = embed(token, self.embedding, self.config, self.embedding.dtype).unsqueeze(1)
        for layer, (block, cache) in enumerate(zip(self.blocks, caches, strict=True)):
            cos, sin = self.rotary.of(layer)
            here = (cos[position : position + 1], sin[position : position + 1])
            x = block_forward(block, self.config, layer, x, here, cache=cache)
        return final_logits(x[:, 0], self.norm, self.head, self.config)

    def _first(self, batch: int, generator: torch.Generator) -> Tensor:
        """The token that begins a text; any token where the model has none."""
        device = self.embedding.device
        if self.config.bos_token_id is not None:
            return torch.full((batch,), self.config.bos_token_id, device=device)
        return torch.randint(self.config.vocab_size, (batch,), generator=generator, device=device)

    def _ends(self) -> Tensor:
        return torch.tensor(self.config.eos_token_ids, device=self.embedding.device)
