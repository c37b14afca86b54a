"""The loop of the engine's process, without a process."""

from __future__ import annotations

from typing import Any

import pytest

from awqkit_runtime.errors import RankError
from awqkit_runtime.serve.worker import worker
from awqkit_runtime.serve.worker.worker import Worker


class IdleEngine:
    """One that nobody asks anything, and whose rank ends after so many looks."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    def has_unfinished(self) -> bool:
        return False

    def require_ranks(self) -> None:
        self.looks -= 1
        if not self.looks:
            raise RankError("Rank 1 of 2 has ended")


class EmptyMailbox:
    """Where nothing ever comes."""

    def __init__(self) -> None:
        self.waits: list[float | None] = []

    def wait(self, seconds: float | None = None) -> None:
        assert seconds is not None, "it would wait for ever"
        self.waits.append(seconds)


def test_a_rank_that_ends_is_noticed_though_nobody_asks_for_anything() -> None:
    engine: Any = IdleEngine(looks=3)
    mailbox: Any = EmptyMailbox()
    with pytest.raises(RankError, match="Rank 1 of 2 has ended"):
        Worker(engine, mailbox).serve()
    assert mailbox.waits == [worker._LOOK_SECONDS] * 3
    assert worker._LOOK_SECONDS <= 1
