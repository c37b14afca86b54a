"""Tiles of a deterministic engine on a GPU, each as one graph from its tokens to its hidden states.

Kernels attend, and give each row and head a block of its own. Those of products make all rows'
sums in the same order, so tokens take the rows that are free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain

from torch import Tensor

from awqkit_runtime.cache.decode_attention import DecodeAttention
from awqkit_runtime.cache.page_format import pages_for
from awqkit_runtime.cache.pool import PagePool
from awqkit_runtime.engine.cuda_graphs import GraphCapture, capture_if_possible
from awqkit_runtime.engine.decode_inputs import DecodeInputs, KnownToken
from awqkit_runtime.engine.runner import DecoderModel
from awqkit_runtime.engine.scheduler import Chunk
from awqkit_runtime.engine.steady_runner import SteadyRunner, Tile, TileToken


class SteadyKernelRunner(SteadyRunner):
    """A SteadyRunner whose tiles are computed by kernels, as a graph if the decoder allows it."""

    def __init__(
        self, decoder: DecoderModel, pool: PagePool, graphs: GraphCapture | None = None
    ) -> None:
        """graphs: None where the decoder computes with a look at numbers on the host."""
        super().__init__(decoder, pool)
        self._inputs = DecodeInputs(self._rows, pages_for(decoder.session_len), decoder.device)
        self._graphs = graphs
        self._compute: Callable[[], object] | None = None
        #: [tile rows, hidden], of the last tile.
        self._computed: Tensor | None = None

    def _tiles(self, sequences: Iterable[Sequence[TileToken]]) -> list[Tile]:
        """One after the other: what a token attends to is in its tile or in an earlier one."""
        tokens = list(chain.from_iterable(sequences))
        starts = range(0, len(tokens), self._rows)
        return [dict(enumerate(tokens[start : start + self._rows])) for start in starts]

    def _hidden(self, chunks: Sequence[Chunk], tile: Tile) -> Tensor:
        tokens = {
            row: KnownToken(
                token_id=token.token_id,
                position=token.position,
                pages=chunks[token.chunk].request.pages,
            )
            for row, token in tile.items()
        }
        self._inputs.bring(self._inputs.plan_known(self._rows, tokens))
        if self._compute is None:
            self._compute = self._prepared()
        self._compute()
        assert self._computed is not None
        return self._computed

    def _prepared(self) -> Callable[[], object]:
        """What computes all tiles, the first one too: in a graph a library may choose other kernels
        than outside of it."""
        self._compute_tile()
        if self._graphs is None:
            return self._compute_tile
        graph = capture_if_possible(self._graphs, self._compute_tile, "Deterministic steps")
        return graph or self._compute_tile

    def _compute_tile(self) -> None:
        """From what the inputs hold."""
        positions = self._inputs.positions(self._rows)
        state = DecodeAttention(
            *(self.pool, self._inputs.page_table(self._rows), positions),
            config=self.decoder.config,
            steady=True,
        )
        hidden = self.decoder.hidden(self._inputs.token_ids(self._rows), positions, state)
        if self._computed is None:
            self._computed = hidden.new_empty(hidden.shape)
        self._computed.copy_(hidden)
