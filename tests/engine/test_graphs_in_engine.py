"""Engines whose decode steps are graphs and are launched ahead: random traffic, equal answers."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from awqkit_runtime.cache.pool import PagePool
from awqkit_runtime.engine.graph_runner import GraphRunner
from tests.engine.fakes import make_engine
from tests.engine.random_traffic import Drive, Order, draw_orders
from tests.engine.recorded_graphs import RecordedGraphs
from tests.engine.tensor_attention import TensorAttention


def graphs_over_one_page_more(decoder: Any, pool: PagePool, *, max_rows: int = 6) -> GraphRunner:
    """The engine knows nothing of the last page, into which idle rows write here."""
    larger = PagePool(pool.format, pool.num_pages + 1, pool.device)
    return GraphRunner(decoder, larger, RecordedGraphs(), max_rows=max_rows)


def sampled_in_other_ways(order: Order, rng: random.Random) -> Order:
    params = replace(
        order.params,
        logprobs=rng.choice((None, None, 0, 3)),
        min_tokens=rng.choice((0, 0, 1)),
        top_p=rng.choice((1.0, 0.8)),
        top_k=rng.choice((0, 5)),
        logit_bias=rng.choice(({}, {}, {3: 2.0})),
    )
    return replace(order, params=params)


@pytest.mark.parametrize("seed", range(4))
def test_traffic_is_answered_as_without_graphs(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts in parts, shared prefixes, a cache that is too small, answers given up halfway."""
    monkeypatch.setattr("awqkit_runtime.engine.graph_runner.DecodeAttention", TensorAttention)
    rng = random.Random(seed)
    orders = draw_orders(rng, count=25, longest=120)
    settings: dict[str, Any] = {
        "pages": rng.choice((5, 8, 40)),
        "max_batch_size": 6,
        "max_prefill_tokens": rng.choice((20, 200)),
    }
    plain = Drive(make_engine(**settings), orders).run()
    engine = make_engine(new_runner=graphs_over_one_page_more, run_ahead=True, **settings)
    found = Drive(engine, orders).run()
    runner: Any = engine._runner
    assert runner._graphs.replays > 30 and runner._graphs.captures <= 8  # Drawn and greedy.
    assert plain.done.keys() == found.done.keys()
    for name, expected in plain.done.items():
        got = found.done[name]
        # How far an answer got when it was given up, the steps' timing says.
        if "abort" in (expected.finish_reason, got.finish_reason):
            length = min(len(expected.token_ids), len(got.token_ids))
            assert expected.token_ids[:length] == got.token_ids[:length]
        else:
            assert (got.token_ids, got.text) == (expected.token_ids, expected.text)


@pytest.mark.parametrize("batch", [1, 3])
def test_so_it_is_with_logprobs_and_filters_in_a_cache_of_few_pages(
    batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("awqkit_runtime.engine.graph_runner.DecodeAttention", TensorAttention)
    rng = random.Random(batch)
    drawn = draw_orders(rng, count=20, longest=20)
    orders = [sampled_in_other_ways(replace(one, abort_steps=None), rng) for one in drawn]
    settings: dict[str, Any] = {"pages": batch, "max_batch_size": batch, "max_prefill_tokens": 9}
    plain = Drive(make_engine(**settings), orders).run()
    new_runner = partial(graphs_over_one_page_more, max_rows=batch)
    found = Drive(make_engine(new_runner=new_runner, run_ahead=True, **settings), orders).run()
    assert plain.done.keys() == found.done.keys()
    for name, expected in plain.done.items():
        got = found.done[name]
        assert (got.token_ids, got.finish_reason) == (expected.token_ids, expected.finish_reason)
        for ours, theirs in zip(got.logprobs or (), expected.logprobs or (), strict=True):
            assert ours == pytest.approx(theirs, abs=1e-4)
