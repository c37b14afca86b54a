"""Figures of a server in Prometheus' format."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from awqkit_runtime.serve.limits import Admission
from awqkit_runtime.serve.worker.client import EngineClient

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120, 300, 600)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class Metrics:
    """Counters of requests, and the engine's own figures as they are when somebody asks."""

    def __init__(self, engine: EngineClient, admission: Admission) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        self.requests = Counter(
            "awqkit_requests", "Requests by how they ended.", ["endpoint", "outcome"],
            registry=registry,
        )  # fmt: skip
        self.prompt_tokens = Counter(
            "awqkit_prompt_tokens", "Tokens of prompts.", registry=registry
        )
        self.generated_tokens = Counter(
            "awqkit_generated_tokens", "Tokens of answers.", registry=registry
        )
        self.first_token = Histogram(
            "awqkit_time_to_first_token_seconds", "From a request's arrival to its first token.",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.per_token = Histogram(
            "awqkit_time_per_token_seconds",
            "Between the tokens of an answer, mean over the answer.",
            buckets=_TOKEN_SECONDS, registry=registry,
        )  # fmt: skip
        self.duration = Histogram(
            "awqkit_request_seconds", "From a request's arrival to the end of its answer.",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        registry.register(_EngineFigures(engine, admission))

    def render(self) -> bytes:
        return generate_latest(self._registry)


class _EngineFigures:
    """Reads the engine's latest statistics at each scrape."""

    def __init__(self, engine: EngineClient, admission: Admission) -> None:
        self._engine = engine
        self._admission = admission

    def collect(self) -> Iterator[Metric]:
        stats = self._engine.stats
        used = stats.used_pages / max(stats.total_pages, 1)
        gauges = {
            "running": ("Answers that the engine computes.", stats.running),
            "waiting": ("Answers that wait in the engine for a place.", stats.waiting),
            "open": ("Answers that the server has promised.", self._admission.taken),
            "cache_usage_ratio": ("Share of the cache's pages that answers use.", used),
            "cache_pages_used": ("Pages of the cache that answers use.", stats.used_pages),
            "cache_pages": ("Pages of the cache.", stats.total_pages),
            "engine_up": ("1 while the engine runs.", float(not self._engine.gone.is_set())),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"awqkit_{name}", text, value=value)
        counters = {
            "preemptions": ("Answers that gave way and were computed again.", stats.preemptions),
            "admitted_tokens": ("Tokens that entered the engine.", stats.admitted_tokens),
            "reused_tokens": ("Of those: found in the cache.", stats.reused_tokens),
        }
        for name, (text, value) in counters.items():
            yield CounterMetricFamily(f"awqkit_{name}", text, value=value)
