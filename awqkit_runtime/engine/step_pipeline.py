"""One step after the other, on a GPU each launched before the one in front of it is collected.

So the device never waits for the host: while a step runs, the next one is scheduled and launched
behind it. A request whose newest token is in flight decodes on from a token that only the device
knows. Where that token turns out to end the answer, what the next step computes for it is dropped.

That step still writes one slot of the ended request's pages, which are free already. No harm is
done, because steps run in the order of their launch: whoever gets a page comes in a step that is
launched later, so it writes the slots that it reads after that. What of those pages can be found
again (full ones, and the one that was begun) holds known tokens alone, which lie in front of the
slot in question. The same goes for requests that are aborted in flight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from awqkit_runtime.engine.launched_step import LaunchedStep, StepLauncher
from awqkit_runtime.engine.request import Request
from awqkit_runtime.engine.sampler import SampledToken, needs_known_tokens
from awqkit_runtime.engine.scheduler import Chunk, Scheduler
from awqkit_runtime.errors import NumericsError


@dataclass(frozen=True, kw_only=True, eq=False)
class _Flight:
    """A step that was launched and is to be collected."""

    chunks: Sequence[Chunk]
    step: LaunchedStep


class StepPipeline:
    """Schedules, launches and collects the steps of an engine.

    It is a context as well: what fails inside, by whatever error, leaves a sound state behind.
    """

    def __init__(self, scheduler: Scheduler, launcher: StepLauncher, *, runs_ahead: bool) -> None:
        """runs_ahead: launch a step before the one in front of it is collected, where that can be.

        The launcher must be one that can follow.
        """
        self._scheduler = scheduler
        self._launcher = launcher
        self._runs_ahead = runs_ahead
        self._in_flight: _Flight | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(self, error: type[BaseException] | None, *details: object) -> None:
        if error is not None:
            self._recover()

    def step(self) -> list[tuple[Request, SampledToken]]:
        """Waits for one step; the tokens that it gave to requests that are still there.

        There must be requests. NumericsError where their numbers are not finite.
        """
        flight = self._in_flight or self._launch(None)
        if flight is None:
            raise RuntimeError("Requests are there, but none can go on.")
        self._in_flight = self._launch(flight) if self._can_follow(flight) else None
        return self._collect(flight)

    def drop(self) -> None:
        """Forgets the step in flight: nobody waits for it, or it is to be computed again."""
        self._in_flight = None

    def _recover(self) -> None:
        """What was in flight is dropped; its tokens, unknown so far, are computed again."""
        self.drop()
        self._scheduler.recover()

    def _launch(self, flight: _Flight | None) -> _Flight | None:
        """The next step, behind the one in flight if there is one; None where nothing can go on."""
        chunks = self._scheduler.schedule(flight.chunks if flight else ())
        if not chunks:
            return None
        step = self._launcher.launch(chunks, flight.step if flight else None)
        return _Flight(chunks=chunks, step=step)

    def _can_follow(self, flight: _Flight) -> bool:
        """Whether the next step can be launched before this one's tokens are known."""
        return self._runs_ahead and not any(map(needs_known_tokens, flight.step.requests))

    def _collect(self, flight: _Flight) -> list[tuple[Request, SampledToken]]:
        live = self._scheduler.requests
        try:
            tokens = flight.step.collect()
        except NumericsError:
            if all(chunk.request.request_id in live for chunk in flight.chunks):
                raise
            # Perhaps those of a request that has ended are not finite; so once more without it.
            self._recover()
            return self.step() if live else []
        for chunk in flight.chunks:
            if chunk.request.request_id in live:
                self._scheduler.advance(chunk)
        sampled = zip(flight.step.requests, tokens, strict=True)
        return [(request, token) for request, token in sampled if request.request_id in live]
