"""Messages survive the way between the processes, and nothing else passes for one."""

from __future__ import annotations

from dataclasses import asdict

import msgspec
import pytest

from awqkit_runtime.engine.grammar import Grammar
from awqkit_runtime.engine.sampling_params import SamplingParams
from awqkit_runtime.serve.worker.messages import (
    LENGTH_BYTES,
    Abort,
    Failed,
    Piece,
    Ready,
    Refused,
    Start,
    Stats,
    Step,
    Submit,
    decode_from_engine,
    decode_to_engine,
    encode_frame,
    frame_length,
)
from awqkit_runtime.serve.worker.worker import _sampling_params

PARAMS = SamplingParams(
    temperature=0.5,
    logit_bias={3: 1.5},
    stop=["a", "é"],
    stop_token_ids=[7],
    seed=-(2**63),
    grammar=Grammar(kind="regex", text="a+"),
)


def body(frame: bytes) -> bytes:
    assert frame_length(frame[:LENGTH_BYTES]) == len(frame) - LENGTH_BYTES
    return frame[LENGTH_BYTES:]


@pytest.mark.parametrize(
    "message",
    [
        Start(model="folder", config={"quant_policy": "k8v4", "session_len": None}),
        Submit(request=1, prompts=[[1, 2], [3]], params=asdict(PARAMS), choices=2),
        Abort(request=2**40),
    ],
)
def test_to_the_engine(message: Start | Submit | Abort) -> None:
    found = decode_to_engine(body(encode_frame(message)))
    assert type(found) is type(message)
    if isinstance(found, Submit):
        assert _sampling_params(found.params) == PARAMS
    else:
        assert found == message


@pytest.mark.parametrize(
    "message",
    [
        Ready(folder="f", session_len=9, max_batch_size=2, total_pages=3),
        Failed(message="no", exit_code=1),
        Step(
            pieces=[
                Piece(request=1, choice=0, text="ü", token_ids=[5], logprobs=[{5: -0.1, 6: -2.5}]),
                Piece(request=1, choice=1, text="", token_ids=[], finish_reason="stop"),
            ],
            stats=Stats(running=3),
        ),
        Refused(request=4, message="no", invalid=True),
    ],
)
def test_from_the_engine(message: Ready | Failed | Step | Refused) -> None:
    assert decode_from_engine(body(encode_frame(message))) == message


@pytest.mark.parametrize("frame", [b"", b"\x00", b"\x81\xa4type\xa4Nope", b"\x80\x04K\x01.", b"[]"])
def test_anything_else_is_refused(frame: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_to_engine(frame)
    with pytest.raises(msgspec.DecodeError):
        decode_from_engine(frame)


def test_a_length_that_no_message_has() -> None:
    with pytest.raises(ValueError, match="4294967295"):
        frame_length(b"\xff" * LENGTH_BYTES)
