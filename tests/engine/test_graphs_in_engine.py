"""Engines whose decode steps are graphs and are launched ahead: random traffic, equal answers."""

from __future__ import annotations

import random
from typing import Any

import pytest

from awqkit_runtime.cache.pool import PagePool
from awqkit_runtime.engine.graph_runner import GraphRunner
from tests.engine.fakes import make_engine
from tests.engine.random_traffic import Drive, draw_orders
from tests.engine.recorded_graphs import RecordedGraphs
from tests.engine.tensor_attention import TensorAttention


def graphs_over_one_page_more(decoder: Any, pool: PagePool) -> GraphRunner:
    """The engine knows nothing of the last page, into which idle rows write here."""
    larger = PagePool(pool.format, pool.num_pages + 1, pool.device)
    return GraphRunner(decoder, larger, RecordedGraphs(), max_rows=6)


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
