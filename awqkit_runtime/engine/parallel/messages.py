"""What rank 0 tells the other ranks, over their standard input: JSON once, then frames of numbers.

A frame is its length in bytes and that many bytes, all of it int64 of this machine: a new cache
[0, pages, index of the policy, noise], or a step [1, then for each sequence: context, new tokens,
pages, the tokens themselves, the pages themselves]. The end of the input is the end of the work.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import BinaryIO

from awqkit_runtime.cache.paged_attention import SequenceSpan
from awqkit_runtime.config import QUANT_POLICIES, QuantPolicy
from awqkit_runtime.engine.runner import StepInputs

_NEW_CACHE, _STEP = 0, 1


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What a rank is to load, and where it meets the others: a port of this machine."""

    model: str
    model_format: str
    device: str
    dtype: str
    session_len: int | None
    rank: int
    ranks: int
    port: int
    #: Of the CPU.
    threads: int


@dataclass(frozen=True, kw_only=True)
class NewCache:
    """The pages that the next steps use. noise: they hold random numbers, to be timed with."""

    num_pages: int
    quant_policy: QuantPolicy
    noise: bool


def send_assignment(stream: BinaryIO, assignment: Assignment) -> None:
    """OSError when nobody is there to read."""
    stream.write(json.dumps(asdict(assignment)).encode() + b"\n")
    stream.flush()


def read_assignment(stream: BinaryIO) -> Assignment:
    return Assignment(**json.loads(stream.readline()))


def encode(message: NewCache | StepInputs) -> bytes:
    """A frame."""
    if isinstance(message, NewCache):
        policy = QUANT_POLICIES.index(message.quant_policy)
        numbers = array("q", (_NEW_CACHE, message.num_pages, policy, message.noise))
    else:
        numbers = array("q", (_STEP,))
        for span in message.spans:
            numbers.extend((span.context, span.length, len(span.pages)))
            numbers.extend(message.token_ids[span.start : span.start + span.length])
            numbers.extend(span.pages)
    body = numbers.tobytes()
    return array("q", (len(body),)).tobytes() + body


def receive(stream: BinaryIO) -> NewCache | StepInputs | None:
    """The next message; None when there will be none."""
    header = array("q")
    head = stream.read(header.itemsize)
    if len(head) < header.itemsize:
        return None
    header.frombytes(head)
    body = stream.read(header[0])
    if len(body) < header[0]:
        return None
    numbers = array("q")
    numbers.frombytes(body)
    return _decode(numbers.tolist())


def _decode(numbers: Sequence[int]) -> NewCache | StepInputs:
    if numbers[0] == _NEW_CACHE:
        _, num_pages, policy, noise = numbers
        return NewCache(num_pages=num_pages, quant_policy=QUANT_POLICIES[policy], noise=bool(noise))
    inputs = StepInputs(token_ids=[], positions=[], spans=[])
    place = 1
    while place < len(numbers):
        context, length, num_pages = numbers[place : place + 3]
        tokens, pages = place + 3, place + 3 + length
        place = pages + num_pages
        inputs.spans.append(
            SequenceSpan(
                start=len(inputs.token_ids),
                length=length,
                context=context,
                pages=tuple(numbers[pages:place]),
            )
        )
        inputs.token_ids.extend(numbers[tokens:pages])
        inputs.positions.extend(range(context, context + length))
    return inputs
