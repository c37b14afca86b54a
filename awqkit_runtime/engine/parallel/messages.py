"""What rank 0 tells the other ranks, over their standard input: JSON once, then frames of numbers.

A frame is its length in bytes and that many bytes, all of it int64 of this machine; its first
number says what it is. The end of the input is the end of the work.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import BinaryIO

import numpy

from awqkit_runtime.cache.paged_attention import SequenceSpan
from awqkit_runtime.config import QUANT_POLICIES, QuantPolicy
from awqkit_runtime.engine.decode_inputs import DecodeNumbers
from awqkit_runtime.engine.runner import StepInputs

_NEW_CACHE, _STEP, _DECODES, _TOKENS = range(4)
#: Of DecodeNumbers.numbers.
_LINES = 3


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
    #: Sequences that run at once.
    max_rows: int


@dataclass(frozen=True, kw_only=True)
class NewCache:
    """The pages that the next steps use, and what computes these."""

    num_pages: int
    quant_policy: QuantPolicy
    #: Whether pages hold random numbers, to be timed with.
    noise: bool = False
    #: Sequences of the largest graph of decodes; 0: there are no graphs.
    graph_rows: int = 0
    #: Bytes of a GPU that steps take, to be set aside.
    workspace: int = 0


@dataclass(frozen=True, kw_only=True)
class DecodeStep:
    """A step of decodes as a graph, to tokens or to what the head reads (GraphRunner.decode)."""

    numbers: DecodeNumbers
    greedy: bool


@dataclass(frozen=True, kw_only=True)
class SampledTokens:
    """Rank 0 has so many tokens to give away, sampled in the step before."""

    count: int


Message = NewCache | StepInputs | DecodeStep | SampledTokens


def send_assignment(stream: BinaryIO, assignment: Assignment) -> None:
    """OSError when nobody is there to read."""
    stream.write(json.dumps(asdict(assignment)).encode() + b"\n")
    stream.flush()


def read_assignment(stream: BinaryIO) -> Assignment:
    return Assignment(**json.loads(stream.readline()))


def encode(message: Message) -> bytes:
    """A frame."""
    body = _numbers(message).tobytes()
    return array("q", (len(body),)).tobytes() + body


def receive(stream: BinaryIO) -> Message | None:
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
    return _READERS[numbers[0]](numbers)


def _numbers(message: Message) -> array[int]:
    if isinstance(message, StepInputs):
        return _step_numbers(message)
    if isinstance(message, DecodeStep):
        return _decode_numbers(message)
    if isinstance(message, SampledTokens):
        return array("q", (_TOKENS, message.count))
    policy = QUANT_POLICIES.index(message.quant_policy)
    sizes = (message.graph_rows, message.workspace)
    return array("q", (_NEW_CACHE, message.num_pages, policy, message.noise, *sizes))


def _new_cache(numbers: Sequence[int]) -> NewCache:
    _, num_pages, policy, noise, graph_rows, workspace = numbers
    return NewCache(
        num_pages=num_pages,
        quant_policy=QUANT_POLICIES[policy],
        noise=bool(noise),
        graph_rows=graph_rows,
        workspace=workspace,
    )


def _sampled_tokens(numbers: Sequence[int]) -> SampledTokens:
    return SampledTokens(count=numbers[1])


def _decode_numbers(message: DecodeStep) -> array[int]:
    """Whether greedy, rows, the numbers; then of rows whose pages changed: row, how many, which."""
    step = message.numbers
    numbers = array("q", (_DECODES, message.greedy, step.rows))
    numbers.frombytes(step.numbers.tobytes())
    for row, pages in step.pages.items():
        numbers.extend((row, len(pages)))
        numbers.extend(pages)
    return numbers


def _decode_step(numbers: array[int]) -> DecodeStep:
    _, greedy, rows = numbers[:3]
    end = 3 + _LINES * rows
    lines = numpy.array(numbers[3:end], dtype=numpy.int64).reshape(_LINES, rows)
    pages = {}
    place = end
    while place < len(numbers):
        row, count = numbers[place : place + 2]
        place += 2 + count
        pages[row] = numbers[place - count : place].tolist()
    return DecodeStep(numbers=DecodeNumbers(numbers=lines, pages=pages), greedy=bool(greedy))


def _step_numbers(message: StepInputs) -> array[int]:
    """How many tokens are followed, for each place and row; then for each sequence: context, new
    tokens, pages, the tokens themselves, the pages themselves."""
    numbers = array("q", (_STEP, len(message.followed)))
    for pair in message.followed:
        numbers.extend(pair)
    for span in message.spans:
        numbers.extend((span.context, span.length, len(span.pages)))
        numbers.extend(message.token_ids[span.start : span.start + span.length])
        numbers.extend(span.pages)
    return numbers


def _step_inputs(frame: array[int]) -> StepInputs:
    numbers = frame.tolist()
    place = 2 + 2 * numbers[1]
    followed = [*zip(numbers[2:place:2], numbers[3:place:2], strict=True)]
    inputs = StepInputs(token_ids=[], positions=[], spans=[], followed=followed)
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


_READERS: dict[int, Callable[[array[int]], Message]] = {
    _NEW_CACHE: _new_cache,
    _STEP: _step_inputs,
    _DECODES: _decode_step,
    _TOKENS: _sampled_tokens,
}
