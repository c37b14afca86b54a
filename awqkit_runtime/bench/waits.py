"""How long requests took, beside how long the scheduler's order allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from awqkit_runtime.engine.request import PRIORITY_STEPS


@dataclass(frozen=True, kw_only=True)
class Service:
    """One request. Times are in steps; tokens: those of prompt and answer together."""

    arrived: int
    ended: int
    priority: int
    tokens: int


def longest_waits(services: Sequence[Service]) -> list[tuple[int, int]]:
    """(steps from arrival to end, the most that they may be) of every request, in their order.

    In every step the first of the running requests computes a token at least, and while it is the
    first it loses none. Before a request are those that it found under way and those that come
    later but go first, being more urgent; each takes a step for every token at most, and anew
    whenever a more urgent one has come in front of it, as it may have had to give way to that one.
    Holds where a step has room for more tokens than sequences.
    """
    if not services:
        return []
    arrived, ended, priority, tokens = (
        torch.tensor([getattr(one, name) for one in services])
        for name in ("arrived", "ended", "priority", "tokens")
    )
    turn = arrived - PRIORITY_STEPS * priority
    waits = []
    for number, one in enumerate(services):
        before = (ended >= arrived[number]) & (arrived <= ended[number])
        before &= (arrived <= arrived[number]) | (turn <= turn[number])
        others = before.nonzero().flatten()
        overtook = (arrived[others, None] < arrived) & (turn[others, None] > turn)
        overtook &= arrived <= ended[number]
        allowed = int((tokens[others] * (1 + overtook.sum(dim=1))).sum())
        waits.append((one.ended - one.arrived, allowed + 1))
    return waits
