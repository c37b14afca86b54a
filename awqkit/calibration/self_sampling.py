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
from awqkit.stopwatch import Stopwatch

#: Sequences that advance together, at most, and the bytes that their keys and values may take.
ROWS_AT_ONCE = 128
CACHE_BYTES = 4 << 30
#: Positions, and times one block, by which sampling is timed.
TIMED_POSITIONS, TIMED_LAYERS = 8, 4


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


def sampling_seconds(
    checkpoint: Checkpoint, *, samples: int, seqlen: int, device: torch.device, dtype: torch.dtype
) -> float:
    """How long sampled_rows will take, from a few positions halfway through one block."""
    model = _Model(checkpoint, seqlen, device, dtype, layers=1)
    batch = min(samples, _rows_at_once(checkpoint.config, seqlen, dtype))
    layers = min(TIMED_LAYERS, checkpoint.config.num_layers)
    without, within = model.seconds_a_position(batch, 0), model.seconds_a_position(batch, layers)
    position = without + (within - without) * checkpoint.config.num_layers / layers
    return position * seqlen * -(-samples // batch)


def _rows_at_once(config: DecoderConfig, seqlen: int, dtype: torch.dtype) -> int:
    row = 2 * config.kv_size * config.num_layers * seqlen * dtype.itemsize
    return max(1, min(ROWS_AT_ONCE, CACHE_BYTES // row))


class _Model:
    """The whole decoder, dense, for sampling."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        seqlen: int,
        device: torch.device,
        dtype: torch.dtype,
        *,
        layers: int | None = None,
    ) -> None:
        """layers: so many of the model's; None for all."""

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
            for layer in range(self.config.num_layers if layers is None else layers)
        ]
        self.rotary = RotaryTables(self.config, seqlen, device)

    def sample(
        self, batch: int, generator: torch.Generator, on_position: Callable[[int], None]
    ) -> Tensor:
        """int64 [batch, seqlen]."""
        tokens = torch.empty(batch, self.seqlen, dtype=torch.long, device=self.embedding.device)
        tokens[:, 0] = self._first(batch, generator)
        caches = self._caches(batch)
        for position in range(1, self.seqlen):
            tokens[:, position] = self._next(
                tokens[:, position - 1], position - 1, caches, generator
            )
            on_position(position + 1)
        return tokens

    def seconds_a_position(self, batch: int, layers: int) -> float:
        """Of the sampling of a row's middle, by so many times the first block."""
        device, middle = self.embedding.device, self.seqlen // 2
        generator, clock = torch.Generator(device).manual_seed(0), Stopwatch(device)
        self.blocks = self.blocks[:1] * max(1, layers)
        token, caches = self._first(batch, generator), self._caches(batch)[:layers]
        for stage in ("first", "later"):
            with clock.timed(stage):
                for _ in range(TIMED_POSITIONS):
                    for cache in caches:
                        cache.length = middle
                    token = self._next(token, middle, caches, generator)
        return clock.seconds["later"] / TIMED_POSITIONS

    def _caches(self, batch: int) -> list[KeyValues]:
        config = self.config
        return [
            KeyValues(batch, self.seqlen, config.num_kv_heads, config.head_dim, self.embedding)
            for _ in self.blocks
        ]

    def _next(
        self, token: Tensor, position: int, caches: list[KeyValues], generator: torch.Generator
    ) -> Tensor:
        """What follows token [batch] at position: drawn, or a first token after a last."""
        logits = self._step(token, position, caches)
        probabilities = torch.softmax(logits.float(), dim=-1)
        drawn = torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
        ended = torch.isin(token, self._ends())
        return torch.where(ended, self._first(len(token), generator), drawn)

    def _step(self, token: Tensor, position: int, caches: list[KeyValues]) -> Tensor:
        """Logits [batch, vocab] after token [batch] at position, by as many blocks as caches."""
        x = embed(token, self.embedding, self.config, self.embedding.dtype).unsqueeze(1)
        for layer, (block, cache) in enumerate(zip(self.blocks, caches, strict=False)):
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
