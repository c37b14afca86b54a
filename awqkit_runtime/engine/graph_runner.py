"""Steps of decodes as graphs: the host launches one graph where it launched hundreds of kernels.

A graph repeats launches as they were, so all that changes from step to step lies in tensors that
stay where they are (DecodeInputs), and a step runs as the smallest batch size that has a graph and
holds it, its last rows idle. Where every request takes its likeliest token, the head and that
choice are in the graph too, and the next step finds its tokens where this one left them. Else they
are launched behind the graph: they differ from batch to batch.

A graph is made when its first step comes: that step runs as any other does, which loads and warms
all kernels, and is then captured for those that follow. That takes some ten milliseconds for each
size, once, and nothing at start. The memory is set aside at start (step_memory). Where a graph
cannot be made all the same, steps of its size run as any other does.
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
from awqkit_runtime.engine.cuda_graphs import GraphCapture, capture_if_possible
from awqkit_runtime.engine.decode_inputs import DecodeInputs, DecodeNumbers
from awqkit_runtime.engine.graph_sizes import graph_sizes
from awqkit_runtime.engine.greedy_choice import (
    ChooseLikeliest,
    choose_likeliest,
    takes_likeliest,
)
from awqkit_runtime.engine.launched_step import LaunchedStep, Outcome
from awqkit_runtime.engine.request import Request
from awqkit_runtime.engine.runner import DecoderModel, Runner
from awqkit_runtime.engine.scheduler import Chunk


class GraphRunner(Runner):
    """A Runner whose steps of decodes are graphs; steps with prompts run as in any Runner."""

    def __init__(
        self,
        decoder: DecoderModel,
        pool: PagePool,
        graphs: GraphCapture,
        *,
        max_rows: int,
        choose: ChooseLikeliest = choose_likeliest,
    ) -> None:
        """max_rows: sequences that run at once. The decoder must compute without a look at
        numbers on the host, as must what chooses."""
        super().__init__(decoder, pool)
        self._graphs = graphs
        self._choose = choose
        self._sizes = graph_sizes(max_rows)
        self._inputs = DecodeInputs(max_rows, pages_for(decoder.session_len), decoder.device)
        #: [max_rows, hidden]: what steps compute.
        self._hidden: Tensor | None = None
        #: By the number of rows; None where no graph could be made.
        self._steps: dict[int, Callable[[], None] | None] = {}
        self._greedy_steps: dict[int, Callable[[], None] | None] = {}
        #: Whether all of these requests take their likeliest token: those of the last step.
        self._likeliest: tuple[tuple[Request, ...], bool] = ((), True)

    @torch.inference_mode()
    def launch(self, chunks: Sequence[Chunk], previous: LaunchedStep | None = None) -> LaunchedStep:
        if not self._fits(chunks):
            return super().launch(chunks, previous)
        requests = tuple([chunk.request for chunk in chunks])
        rows = self._sizes[bisect_left(self._sizes, len(chunks))]
        greedy = self._take_likeliest(requests)
        self.decode(self._inputs.plan(rows, chunks, previous), greedy=greedy)
        if greedy:
            return self._chosen_step(requests)
        assert self._hidden is not None
        return self._sampled(self.decoder.logits(self._hidden[: len(chunks)]), chunks)

    @torch.inference_mode()
    def decode(self, step: DecodeNumbers, *, greedy: bool) -> None:
        """Enqueues a step, to its tokens or to what the head reads."""
        self._inputs.bring(step)
        if greedy:
            self._run(self._greedy_steps, self._choose_rows, step.rows)
        else:
            self._run(self._steps, self._compute_rows, step.rows)

    @property
    def chosen_tokens(self) -> Tensor:
        """int64 [max_rows]: of the last greedy step."""
        return self._inputs.outcome[:, 0]

    def take_tokens(self, token_ids: Tensor) -> None:
        """int64 [n], of a step: for the rows of the next one."""
        self._inputs.put_tokens(token_ids)

    def _fits(self, chunks: Sequence[Chunk]) -> bool:
        return len(chunks) <= self._sizes[-1] and all(
            chunk.length == 1 and chunk.samples for chunk in chunks
        )

    def _take_likeliest(self, requests: tuple[Request, ...]) -> bool:
        """Looked at again only where requests came or went."""
        if self._likeliest[0] != requests:
            self._likeliest = requests, all(map(takes_likeliest, requests))
        return self._likeliest[1]

    def _chosen_step(self, requests: tuple[Request, ...]) -> LaunchedStep:
        outcome = self._inputs.outcome[: len(requests)]
        step = self._delivered(
            LaunchedStep(
                requests=requests,
                token_ids=outcome[:, 0],
                outcome=Outcome(outcome),
                logprobs=None,
                dtype=self.decoder.dtype,
            )
        )
        self._inputs.hold(step)
        return step

    def _run(
        self,
        graphs: dict[int, Callable[[], None] | None],
        compute: Callable[[int], None],
        rows: int,
    ) -> None:
        """Computes a step of so many rows from what the inputs hold, as a graph if there is one."""
        graph = graphs.get(rows)
        if graph is not None:
            graph()
            return
        compute(rows)
        if rows not in graphs:
            what = f"Steps of {rows} sequences"
            graphs[rows] = capture_if_possible(self._graphs, partial(compute, rows), what)

    def _choose_rows(self, rows: int) -> None:
        """What a graph repeats, to the tokens."""
        outcome = self._inputs.outcome[:rows]
        self._choose(self.decoder, self._hidden_rows(rows), outcome)

    def _compute_rows(self, rows: int) -> None:
        """What a graph repeats, to what the head reads."""
        hidden = self._hidden_rows(rows)
        if self._hidden is None:
            self._hidden = hidden.new_empty((self._sizes[-1], hidden.shape[-1]))
        self._hidden[:rows].copy_(hidden)

    def _hidden_rows(self, rows: int) -> Tensor:
        positions = self._inputs.positions(rows)
        state = DecodeAttention(
            self.pool, self._inputs.page_table(rows), positions, config=self.decoder.config
        )
        return self.decoder.hidden(self._inputs.token_ids(rows), positions, state)
