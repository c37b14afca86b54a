"""What a rank other than 0 does with what rank 0 tells it: the same steps, with its own share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from awqkit_runtime.cache.page_format import PageFormat
from awqkit_runtime.cache.pool import PagePool
from awqkit_runtime.engine.graph_runner import GraphRunner
from awqkit_runtime.engine.memory import set_aside
from awqkit_runtime.engine.parallel.choice import SharedChoice, head_part
from awqkit_runtime.engine.parallel.communicator import Communicator
from awqkit_runtime.engine.parallel.messages import DecodeStep, Message, NewCache, SampledTokens
from awqkit_runtime.engine.parallel.noise import fill_with_noise
from awqkit_runtime.engine.parallel.peers import Peers
from awqkit_runtime.engine.parallel.shares import Share
from awqkit_runtime.engine.runner import Runner, StepInputs
from awqkit_runtime.engine.runners import graphs_for, prepare_launches
from awqkit_runtime.models.decoder import Decoder


class FollowingRunner:
    """Computes a rank's share of each step, in the order in which rank 0 launches them."""

    def __init__(self, runner: Runner, sum_: Callable[[Tensor], Tensor]) -> None:
        """sum_: over the ranks, in place."""
        self._runner = runner
        self._sum = sum_
        #: int64 [rows]: the tokens of the step before.
        self._tokens: Tensor | None = None

    @torch.inference_mode()
    def follow(self, message: Message) -> None:
        """Enqueues what the message says; waits for nothing."""
        if isinstance(message, StepInputs):
            self._runner.hidden(message, self._tokens)
        elif isinstance(message, DecodeStep):
            self._decode(message)
        elif isinstance(message, SampledTokens):
            self._take_tokens(message.count)

    def _decode(self, message: DecodeStep) -> None:
        runner = self._graph_runner()
        runner.decode(message.numbers, greedy=message.greedy)
        if message.greedy:
            self._tokens = runner.chosen_tokens

    def _take_tokens(self, count: int) -> None:
        """Those that rank 0 has sampled."""
        zeros = torch.zeros(count, dtype=torch.int64, device=self._runner.decoder.device)
        self._tokens = self._sum(zeros)
        if isinstance(self._runner, GraphRunner):
            self._runner.take_tokens(self._tokens)

    def _graph_runner(self) -> GraphRunner:
        if not isinstance(self._runner, GraphRunner):
            raise RuntimeError("a step came as a graph, where none are made")
        return self._runner


def following_runner(
    decoder: Decoder, communicator: Communicator, share: Share, message: NewCache
) -> FollowingRunner:
    """With a new cache."""
    page_format = PageFormat.for_policy(decoder.config, message.quant_policy, decoder.dtype)
    pool = PagePool(page_format, message.num_pages, decoder.device)
    if message.noise:
        fill_with_noise(pool)
    if message.workspace:
        set_aside(message.workspace, decoder.device)
    runner = Runner(decoder, pool)
    if message.graph_rows and communicator.peers is not None:
        graphs = graphs_for(decoder, pool, message.graph_rows)
        choose = shared_choice(decoder, share, communicator.peers)
        runner = GraphRunner(decoder, pool, graphs, max_rows=message.graph_rows, choose=choose)
    else:
        prepare_launches(decoder, pool)
    return FollowingRunner(runner, communicator.sum_)


def shared_choice(decoder: Decoder, share: Share, peers: Peers) -> SharedChoice:
    return SharedChoice(head_part(decoder, share), peers.choices)
