"""A conversation of many turns reads only what is new in each."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.serve.servers import Server

QUESTION = "Tell me more of the old house by the sea, and of the people who lived in it then."
TURNS = 10
#: A busy neighbour slows single turns down; the best of some conversations is what a turn costs.
MOST_CONVERSATIONS = 12


def times_to_first_token(server: Server, number: int) -> tuple[list[float], list[int]]:
    """Of each turn of a conversation: seconds, and tokens of the prompt that were not cached."""
    client = server.client()
    messages: list[Any] = [{"role": "system", "content": f"Conversation {number}."}]
    seconds, unread = [], []
    for turn in range(TURNS):
        messages.append({"role": "user", "content": f"{turn}. {QUESTION}"})
        asked: Any = {"model": "demo", "messages": messages, "temperature": 0, "max_tokens": 8}
        start = time.perf_counter()
        stream: Any = client.chat.completions.create(
            **asked, stream=True, stream_options={"include_usage": True}
        )
        answer = ""
        for chunk in stream:
            if chunk.choices and not answer and chunk.choices[0].delta.content:
                seconds.append(time.perf_counter() - start)
            answer += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        used = chunk.usage
        unread.append(used.prompt_tokens - used.prompt_tokens_details.cached_tokens)
        messages.append({"role": "assistant", "content": answer})
    return seconds, unread


def test_turn_ten_comes_as_soon_as_turn_two(server: Server) -> None:
    best = [float("inf")] * TURNS
    for number in range(MOST_CONVERSATIONS):
        seconds, unread = times_to_first_token(server, number)
        # No more is read than the question and what stands around it.
        assert all(tokens < 50 for tokens in unread[1:])
        best = [min(pair) for pair in zip(best, seconds, strict=True)]
        if best[9] < 1.5 * best[1]:
            return
    pytest.fail(f"times to the first token, in seconds: {best}")
