"""Two ranks run ahead, each a thread of this process: random traffic, the answers of one rank."""

from __future__ import annotations

import queue
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from io import BytesIO
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from awqkit.checkpoint import Checkpoint, open_checkpoint
from awqkit_runtime.cache.page_format import PageFormat
from awqkit_runtime.cache.pool import PagePool
from awqkit_runtime.config import EngineConfig
from awqkit_runtime.engine.graph_runner import GraphRunner
from awqkit_runtime.engine.greedy_choice import choose_likeliest
from awqkit_runtime.engine.launched_step import launcher
from awqkit_runtime.engine.parallel.communicator import Communicator
from awqkit_runtime.engine.parallel.decoder import load_share
from awqkit_runtime.engine.parallel.following import FollowingRunner
from awqkit_runtime.engine.parallel.messages import DecodeStep, Message, encode, receive
from awqkit_runtime.engine.parallel.runner import LeadingGraphRunner, LeadingRunner
from awqkit_runtime.engine.parallel.shares import Share
from awqkit_runtime.engine.request import Request
from awqkit_runtime.engine.runner import Runner, StepInputs
from awqkit_runtime.engine.sampling_params import SamplingParams
from awqkit_runtime.engine.scheduler import Chunk
from awqkit_runtime.errors import RankError
from awqkit_runtime.models.decoder import Decoder
from awqkit_runtime.models.loader import load_decoder
from tests.engine.fakes import make_engine
from tests.engine.random_traffic import Drive, draw_orders
from tests.engine.tensor_attention import TensorAttention
from tests.tiny_models import write_tiny_model

CPU = torch.device("cpu")
ROWS = 5


class SameAgain:
    """GraphCapture that computes again, as the sums of gloo cannot be recorded."""

    def capture(self, compute: Callable[[], object]) -> Callable[[], None]:
        def repeat() -> None:
            compute()

        return repeat


class ThreadTeam:
    """Rank 0's view of a rank 1 that is a thread; what it is told passes through bytes."""

    ranks = 2

    def __init__(self, communicator: Communicator) -> None:
        self.communicator = communicator
        self.told: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self.kinds: list[type] = []

    def tell(self, message: Message) -> None:
        self.kinds.append(type(message))
        self.told.put(receive(BytesIO(encode(message))))

    def raise_if_ended(self, error: Exception) -> None:
        raise error

    def require_all(self) -> None:
        pass


class Ranks:
    """Two ranks of a model, rank 1 in a thread that follows until close()."""

    def __init__(self, source: Checkpoint, *, graphs: bool) -> None:
        self._source = source
        self._graphs = graphs
        self._store = dist.HashStore()
        self._pages: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._connected: queue.SimpleQueue[Communicator] = queue.SimpleQueue()
        self.failed: list[BaseException] = []
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()
        communicator, self.decoder = self._load(0)
        self.team: Any = ThreadTeam(communicator)

    def new_runner(self, decoder: Any, pool: PagePool) -> LeadingRunner:
        self._pages.put(pool.num_pages)
        if not self._graphs:
            return LeadingRunner(decoder, pool, self.team)
        choose = partial(choose_together, self.team.communicator, Share(rank=0, ranks=2))
        return LeadingGraphRunner(
            decoder, one_page_more(pool), self.team, SameAgain(), max_rows=ROWS, choose=choose
        )

    def close(self) -> None:
        self.team.told.put(None)
        self._thread.join(60)
        assert not self._thread.is_alive() and not self.failed

    def _load(self, rank: int) -> tuple[Communicator, Decoder]:
        share = Share(rank=rank, ranks=2)
        communicator = Communicator(self._store, share, CPU)
        decoder = load_share(self._source, share, communicator, device=CPU, dtype="float32")
        return communicator, decoder

    def _follow(self) -> None:
        try:
            communicator, decoder = self._load(1)
            following = FollowingRunner(self._runner(communicator, decoder), communicator.sum_)
            while (message := self.team.told.get()) is not None:
                following.follow(message)
        except BaseException as error:
            self.failed.append(error)
            raise

    def _runner(self, communicator: Communicator, decoder: Decoder) -> Runner:
        # Not of an engine: making one patches what the main thread's is being made of.
        form = PageFormat.for_policy(decoder.config, EngineConfig().policy, decoder.dtype)
        pool = PagePool(form, self._pages.get(), CPU)
        if not self._graphs:
            return Runner(decoder, pool)
        choose = partial(choose_together, communicator, Share(rank=1, ranks=2))
        return GraphRunner(decoder, one_page_more(pool), SameAgain(), max_rows=ROWS, choose=choose)


def one_page_more(pool: PagePool) -> PagePool:
    """The last page is nobody's; idle rows write there."""
    return PagePool(pool.format, pool.num_pages + 1, pool.device)


def choose_together(
    communicator: Communicator, share: Share, decoder: Any, hidden: Tensor, outcome: Tensor
) -> None:
    """Rank 0 chooses, and tells by a sum."""
    outcome.zero_()
    if share.rank == 0:
        choose_likeliest(decoder, hidden, outcome)
    outcome.copy_(communicator.sum_(outcome.clone()))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(write_tiny_model(tmp_path_factory.mktemp("model"), seed=5))


@pytest.fixture(params=[True, False], ids=["graphs", "launches"])
def ranks(source: Checkpoint, request: pytest.FixtureRequest) -> Iterator[Ranks]:
    found = Ranks(source, graphs=request.param)
    yield found
    found.close()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("pages", [9, 40])
def test_traffic_is_answered_as_by_one_rank(
    pages: int, ranks: Ranks, source: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts in parts, shared prefixes, greedy and drawn tokens, answers given up halfway."""
    monkeypatch.setattr("awqkit_runtime.engine.graph_runner.DecodeAttention", TensorAttention)
    orders = draw_orders(random.Random(pages), count=20, longest=100)
    orders = [replace(one, params=replace(one.params, priority=0)) for one in orders]
    settings: dict[str, Any] = {
        "pages": pages,
        "max_batch_size": ROWS,
        "max_prefill_tokens": 30,
    }
    alone = load_decoder(source, device="cpu", dtype="float32")
    plain = Drive(make_engine(alone, **settings), orders).run()
    engine = make_engine(ranks.decoder, new_runner=ranks.new_runner, run_ahead=True, **settings)
    assert launcher(engine._runner) is engine._runner  # It runs ahead.
    found = Drive(engine, orders).run()
    assert (DecodeStep in ranks.team.kinds) == ranks._graphs
    assert plain.done.keys() == found.done.keys()
    for name, expected in plain.done.items():
        got = found.done[name]
        length = len(expected.token_ids)
        if "abort" in (expected.finish_reason, got.finish_reason):  # The steps' timing says when.
            length = min(length, len(got.token_ids))
            assert got.token_ids[:length] == expected.token_ids[:length]
        else:
            assert (got.token_ids, got.text) == (expected.token_ids, expected.text)


def test_an_error_in_the_middle_of_a_step_ends_the_team(
    source: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other ranks have been told of a step that rank 0 does not finish. The error is its own,
    though by the end the others have ended too."""
    ended: list[bool] = []

    class Team(ThreadTeam):
        def raise_if_ended(self, error: Exception) -> None:
            if ended:
                raise RankError("Rank 1 of 2 has ended with code 0") from error

        def close(self) -> None:
            ended.append(True)

    def fail(*arguments: Any) -> Tensor:
        raise RuntimeError("out of memory")

    engine = make_engine(load_decoder(source, device="cpu", dtype="float32"), pages=9)
    team: Any = Team(Communicator(dist.HashStore(), Share(rank=0, ranks=1), CPU))
    runner = LeadingRunner(engine._runner.decoder, engine._runner.pool, team)
    monkeypatch.setattr(runner.decoder, "hidden", fail)
    chunk = Chunk(request=some_request(), start=0, length=2, samples=True)
    with pytest.raises(RuntimeError, match="out of memory"):
        runner.launch([chunk])
    assert team.kinds == [StepInputs] and ended


def some_request() -> Request:
    found = Request(
        request_id=0,
        prompt_token_ids=(5, 6),
        params=SamplingParams(),
        seed=0,
        stop_token_ids=frozenset(),
        max_output=1,
    )
    found.pages = [0]
    return found
