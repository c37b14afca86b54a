"""From scheduled chunks to logits, so that no bit depends on what else the step computes.

A matrix product sums in an order that its shape decides, and on a CPU the row. So every product
here has one shape: tiles of a fixed number of rows, in which a token has the row that its position
gives it. Tokens of other sequences may have the other rows, as may nothing at all; how a prompt was
split, what was found in the cache and what was computed again after giving way makes no difference
either.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy
import torch
from torch import Tensor

from awqkit.checkpoint.decoder_config import DecoderConfig
from awqkit_runtime.cache.pool import PagePool
from awqkit_runtime.cache.steady_attention import SteadyAttention, TokenPlace
from awqkit_runtime.engine.host_arrays import to_device
from awqkit_runtime.engine.runner import DecoderModel, require_finite
from awqkit_runtime.engine.scheduler import Chunk

#: Rows of a tile: few enough for a decoding sequence alone, enough to read prompts in some haste.
TILE_ROWS = 16


@dataclass(frozen=True, kw_only=True)
class TileToken:
    """A new token. chunk: its number among those of the step."""

    chunk: int
    token_id: int
    position: int


def tile_rows(config: DecoderConfig) -> int:
    """Rows of a tile of such a decoder."""
    # How many tokens an expert gets depends on all tokens of a tile.
    return TILE_ROWS if config.experts is None else 1


#: Tokens by their row.
Tile: TypeAlias = dict[int, TileToken]


class SteadyRunner:
    """Runs a decoder tile by tile; a Runner that is slower and exact."""

    can_follow: ClassVar[bool] = False

    def __init__(self, decoder: DecoderModel, pool: PagePool) -> None:
        self.decoder = decoder
        self.pool = pool
        self._rows = tile_rows(decoder.config)

    @torch.inference_mode()
    def run(self, chunks: Sequence[Chunk]) -> Tensor:
        """Logits, float32 [rows, vocab], one row for each chunk that samples, in their order.

        NumericsError when they are not finite.
        """
        samples = [index for index, chunk in enumerate(chunks) if chunk.samples]
        # Of their own, so that no tile's logits stay for the sake of a few rows.
        logits = torch.empty(
            (len(samples), self.decoder.config.vocab_size), device=self.decoder.device
        )
        places = {index: place for place, index in enumerate(samples)}
        for tile in self._tiles(map(_tokens, range(len(chunks)), chunks)):
            wanted = {
                row: places[token.chunk]
                for row, token in tile.items()
                if _samples(chunks[token.chunk], token)
            }
            hidden = self._hidden(chunks, tile)
            if wanted:
                found = self.decoder.logits(hidden)
                for row, place in wanted.items():
                    logits[place] = found[row]
        return require_finite(logits, self.decoder)

    def _tiles(self, sequences: Iterable[Sequence[TileToken]]) -> list[Tile]:
        return pack_tiles(sequences, self._rows)

    def _hidden(self, chunks: Sequence[Chunk], tile: Tile) -> Tensor:
        """Of a whole tile, [tile rows, hidden]; rows without a token hold nothing of meaning."""
        ids, positions = [0] * self._rows, [0] * self._rows
        places = []
        for row, token in tile.items():
            ids[row], positions[row] = token.token_id, token.position
            pages = tuple(chunks[token.chunk].request.pages)
            places.append(TokenPlace(row=row, position=token.position, pages=pages))
        config = self.decoder.config
        state = SteadyAttention(self.pool, places, rows=self._rows, config=config)
        arrays = [numpy.array(numbers) for numbers in (ids, positions)]
        token_ids, where = to_device(arrays, self.decoder.device)
        return self.decoder.hidden(token_ids, where, state)


def _tokens(index: int, chunk: Chunk) -> list[TileToken]:
    ids = chunk.request.tokens(chunk.start, chunk.start + chunk.length)
    return [
        TileToken(chunk=index, token_id=token, position=position)
        for position, token in enumerate(ids, start=chunk.start)
    ]


def pack_tiles(sequences: Iterable[Sequence[TileToken]], rows: int) -> list[Tile]:
    """Tokens of each sequence, in order of position, into tiles of `rows` rows.

    A token's row is its position modulo rows. Tokens of a sequence that could share a tile do, and
    its later tokens are in later tiles, or in the same one.
    """
    tiles: list[Tile] = []
    for tokens in sequences:
        earliest = 0
        for unit in _units(tokens, rows):
            taken = {token.position % rows: token for token in unit}
            while earliest < len(tiles) and not taken.keys().isdisjoint(tiles[earliest]):
                earliest += 1
            if earliest == len(tiles):
                tiles.append({})
            tiles[earliest] |= taken
    return tiles


def _units(tokens: Sequence[TileToken], rows: int) -> list[list[TileToken]]:
    """Runs of tokens whose positions lie in the same multiple of `rows`."""
    units: dict[int, list[TileToken]] = {}
    for token in tokens:
        units.setdefault(token.position // rows, []).append(token)
    return list(units.values())


def _samples(chunk: Chunk, token: TileToken) -> bool:
    return chunk.samples and token.position == chunk.start + chunk.length - 1
