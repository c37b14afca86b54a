"""What the HTTP side and the engine's process say to each other: msgpack, checked by type."""

from __future__ import annotations

from typing import Any

import msgspec

from awqkit_runtime.engine.request import FinishReason

#: A frame is its length, four bytes, most significant first, and that many bytes of msgpack.
LENGTH_BYTES = 4
#: No message comes near it: prompts are bounded by the limit on bodies.
MAX_FRAME_BYTES = 2**28


class Start(msgspec.Struct, tag=True):
    """To the engine, first: what to load. `config` holds the fields of EngineConfig."""

    model: str
    config: dict[str, Any]


class Submit(msgspec.Struct, tag=True):
    """To the engine: answer each prompt `choices` times. `params` are those of SamplingParams.

    The answers are numbered prompt by prompt.
    """

    request: int
    prompts: list[list[int]]
    params: dict[str, Any]
    choices: int = 1


class Abort(msgspec.Struct, tag=True):
    """To the engine: the client has gone; free what the request holds."""

    request: int


class Ready(msgspec.Struct, tag=True):
    """From the engine: the model is loaded."""

    folder: str
    session_len: int
    max_batch_size: int
    total_pages: int


class Failed(msgspec.Struct, tag=True):
    """From the engine: the model cannot be loaded, for a reason that the user can mend."""

    message: str
    exit_code: int


class Piece(msgspec.Struct, array_like=True):
    """What a step added to one choice of one request."""

    request: int
    choice: int
    text: str
    token_ids: list[int]
    logprobs: list[dict[int, float]] | None = None
    #: Set in a choice's last piece.
    finish_reason: FinishReason | None = None
    #: Tokens of the prompt that the cache already held; counted in a choice's last piece.
    cached_tokens: int = 0


class Stats(msgspec.Struct, array_like=True):
    """EngineStats, as they travel."""

    running: int = 0
    waiting: int = 0
    used_pages: int = 0
    total_pages: int = 0
    admitted_tokens: int = 0
    reused_tokens: int = 0
    preemptions: int = 0


class Step(msgspec.Struct, tag=True):
    """From the engine, after each step and whenever a request left it otherwise."""

    pieces: list[Piece]
    stats: Stats


class Refused(msgspec.Struct, tag=True):
    """From the engine: this request ends without (further) answer.

    `fault` says whose: the client's request, or the engine that could not go on.
    """

    request: int
    message: str
    #: True: the request can never be served; False: the engine failed at it.
    invalid: bool


ToEngine = Start | Submit | Abort
FromEngine = Ready | Failed | Step | Refused

_encoder = msgspec.msgpack.Encoder()
_to_engine = msgspec.msgpack.Decoder(ToEngine)
_from_engine = msgspec.msgpack.Decoder(FromEngine)


def encode_frame(message: ToEngine | FromEngine) -> bytes:
    """A message with its length before it."""
    body = _encoder.encode(message)
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def frame_length(header: bytes) -> int:
    """Bytes of the body that follows; ValueError for a length that no message has."""
    length = int.from_bytes(header, "big")
    if length > MAX_FRAME_BYTES:
        raise ValueError(f"a message of {length} bytes is no message")
    return length


def decode_to_engine(body: bytes) -> ToEngine:
    """msgspec.DecodeError for anything else."""
    message: ToEngine = _to_engine.decode(body)
    return message


def decode_from_engine(body: bytes) -> FromEngine:
    """msgspec.DecodeError for anything else."""
    message: FromEngine = _from_engine.decode(body)
    return message
