"""Steps of decodes as graphs: the host launches one graph where it launched hundreds of kernels.

A graph repeats launches as they were, so all that changes from step to step lies in tensors that
stay where they are (DecodeInputs), and a step runs as the smallest batch size that has a graph and
holds it, its last rows idle. The head and the sampling are launched behind the graph: they differ
from batch to batch, and what they make is then nobody else's.

A size's graph is made when its first step comes: that step runs as any other does, which loads and
warms all kernels, and is then captured for those that follow. That takes some ten milliseconds for
each size, once, and nothing at start. The memory is set aside at start (step_memory).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from awqkit_runtime.cache.decode_attention import DecodeAttention
from awqkit_runtime.cache.page_format import pages_for
from awqkit_runtime.cache.pool import PagePool
from awqkit_runtime.engine.cuda_graphs import GraphCapture
from awqkit_runtime.engine.decode_inputs import DecodeInputs
from awqkit_runtime.engine.graph_sizes import graph_sizes
from awqkit_runtime.engine.launched_step import LaunchedStep, sampled_step
from awqkit_runtime.engine.runner import DecoderModel, Runner
from awqkit_runtime.engine.scheduler import Chunk


class GraphRunner(Runner):
    """A Runner whose steps of decodes are graphs; steps with prompts run as in any Runner."""

    def __init__(
        self, decoder: DecoderModel, pool: PagePool, graphs: GraphCapture, *, max_rows: int
    ) -> None:
        """max_rows: sequences that run at once. The decoder must compute without a look at
        numbers on the host."""
        super().__init__(decoder, pool)
        self._graphs = graphs
        self._sizes = graph_sizes(max_rows)
        self._inputs = DecodeInputs(max_rows, pages_for(decoder.session_len), decoder.device)
        #: [max_rows, hidden]: what steps compute.
        self._hidden: Tensor | None = None
        self._steps: dict[int, Callable[[], None]] = {}

    @torch.inference_mode()
    def launch(self, chunks: Sequence[Chunk], previous: LaunchedStep | None = None) -> LaunchedStep:
        if not self._fits(chunks):
            return super().launch(chunks, previous)
        rows = self._sizes[bisect_left(self._sizes, len(chunks))]
        self._inputs.fill(rows, chunks, previous)
        logits = self.decoder.logits(self._decode(rows)[: len(chunks)])
        return sampled_step(logits, chunks, dtype=self.decoder.dtype)

    def _fits(self, chunks: Sequence[Chunk]) -> bool:
        return len(chunks) <= self._sizes[-1] and all(
            chunk.length == 1 and chunk.samples for chunk in chunks
        )

    def _decode(self, rows: int) -> Tensor:
        """Computes a step of so many rows from what the inputs hold: [rows or more, hidden]."""
        step = self._steps.get(rows)
        if step is None:
            hidden = self._compute_rows(rows)
            self._steps[rows] = self._graphs.capture(partial(self._compute_rows, rows))
            return hidden
        step()
        assert self._hidden is not None
        return self._hidden

    def _compute_rows(self, rows: int) -> Tensor:
        """What a graph repeats."""
        positions = self._inputs.positions(rows)
        state = DecodeAttention(
            self.pool, self._inputs.page_table(rows), positions, config=self.decoder.config
        )
        hidden = self.decoder.hidden(self._inputs.token_ids(rows), positions, state)
        if self._hidden is None:
            self._hidden = hidden.new_empty((self._sizes[-1], hidden.shape[-1]))
        self._hidden[:rows].copy_(hidden)
        return self._hidden
