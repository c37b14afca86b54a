"""Two workers of a local Ray cluster behind one address; one of them dies under load."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.free_port import free_port

# Not imported where the test is not run: it takes seconds.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed"),
]
ROOT = Path(__file__).parents[2]
CLIENTS = 6
#: Seconds of load before and after a worker dies.
BEFORE, AFTER = 8.0, 30.0


@dataclass(frozen=True)
class Outcome:
    start: float
    end: float
    text: str | None


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head that computes nothing, and two workers with a place for one replica each."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    workers = [cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ray.init(address=cluster.address, runtime_env={"env_vars": environment})
    yield cluster, workers
    ray.shutdown()
    cluster.shutdown()


def test_a_dying_worker_takes_only_what_it_was_answering(cluster: Any) -> None:
    from ray import serve

    from examples.ray_serve.deployment import app

    nodes, workers = cluster
    port = free_port()
    serve.start(http_options={"port": port}, proxy_location="HeadOnly")
    model = str(ROOT / "examples" / "demo_model" / "model")
    replicas = {"min_replicas": 2, "max_replicas": 2}
    serve.run(app({"model": model, "model_name": "quill", "cpus": 1, **replicas}))
    expected = ask(port)
    assert expected

    outcomes: list[Outcome] = []
    stop = threading.Event()
    clients = [
        threading.Thread(target=keep_asking, args=(port, outcomes, stop)) for _ in range(CLIENTS)
    ]
    for client in clients:
        client.start()
    time.sleep(BEFORE)
    killed = time.monotonic()
    nodes.remove_node(workers[0], allow_graceful=False)
    time.sleep(AFTER)
    stop.set()
    for client in clients:
        client.join(90)

    assert not any(client.is_alive() for client in clients)
    lost = [outcome for outcome in outcomes if outcome.text is None]
    assert len(lost) <= CLIENTS
    assert all(outcome.start <= killed + 1 for outcome in lost), "lost after the worker had died"
    answered = [outcome for outcome in outcomes if outcome.text is not None]
    assert {outcome.text for outcome in answered} == {expected}
    assert sum(outcome.start > killed for outcome in answered) >= CLIENTS
    serve.shutdown()


def keep_asking(port: int, outcomes: list[Outcome], stop: threading.Event) -> None:
    while not stop.is_set():
        start = time.monotonic()
        text = ask(port)
        outcomes.append(Outcome(start, time.monotonic(), text))


def ask(port: int) -> str | None:
    """The answer's text, the same each time; None where there is none."""
    question = {
        "model": "quill",
        "messages": [{"role": "user", "content": "Who came to the door?"}],
        "max_tokens": 12,
        "temperature": 0,
    }
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        data=json.dumps(question).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)["choices"][0]["message"]["content"]
    except (urllib.error.URLError, OSError):
        return None
