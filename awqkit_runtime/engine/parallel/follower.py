"""A rank other than 0: loads its share of the model, then computes the steps that rank 0 names."""

from __future__ import annotations

import awqkit_runtime.openmp  # noqa: F401  isort: skip  (before torch)

import os
import queue
import sys
import threading
import time
import traceback
from typing import BinaryIO, NoReturn

import torch
import torch.distributed as dist

from awqkit.checkpoint import open_checkpoint
from awqkit_runtime.engine.memory import free_memory
from awqkit_runtime.engine.parallel.communicator import (
    LOOPBACK,
    PATIENCE,
    Communicator,
    arrival_key,
)
from awqkit_runtime.engine.parallel.decoder import load_share
from awqkit_runtime.engine.parallel.following import FollowingRunner, following_runner
from awqkit_runtime.engine.parallel.messages import (
    Assignment,
    Message,
    NewCache,
    read_assignment,
    receive,
)
from awqkit_runtime.engine.parallel.shares import Share
from awqkit_runtime.errors import AwqkitError
from awqkit_runtime.models.decoder import Decoder

_SECONDS_TO_LISTEN = 1.0

Messages = queue.SimpleQueue[Message]


def main() -> NoReturn:
    """Works until rank 0 closes the input, or is gone."""
    assignment = read_assignment(sys.stdin.buffer)
    messages: Messages = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, messages), daemon=True).start()
    try:
        share = Share(rank=assignment.rank, ranks=assignment.ranks)
        communicator = _connect(assignment, share)
        _follow(_load(assignment, share, communicator), communicator, share, messages)
    except AwqkitError as error:
        print(f"Rank {assignment.rank}: {error}", file=sys.stderr)
        _end(error.exit_code)
    except Exception:  # noqa: BLE001  (the process ends with it)
        # Where the reason is that rank 0 is gone, the listener ends the process meanwhile.
        time.sleep(_SECONDS_TO_LISTEN)
        traceback.print_exc()
        _end(1)


def _end(code: int) -> NoReturn:
    """At once: Python's own end fails over the thread that reads the input, and would wait for what
    the device still waits for."""
    sys.stderr.flush()
    os._exit(code)


def _listen(stream: BinaryIO, messages: Messages) -> None:
    """Ends the process with the input, whatever it is waiting for then."""
    while (message := receive(stream)) is not None:
        messages.put(message)
    os._exit(0)


def _connect(assignment: Assignment, share: Share) -> Communicator:
    torch.set_num_threads(assignment.threads)
    store = dist.TCPStore(LOOPBACK, assignment.port, timeout=PATIENCE)
    store.set(arrival_key(share.rank), "")
    return Communicator(store, share, torch.device(assignment.device))


def _load(assignment: Assignment, share: Share, communicator: Communicator) -> Decoder:
    device = torch.device(assignment.device)
    decoder = load_share(
        open_checkpoint(assignment.model, model_format=assignment.model_format),
        share,
        communicator,
        device=device,
        dtype=assignment.dtype,
        session_len=assignment.session_len,
        max_rows=assignment.max_rows,
    )
    communicator.least(free_memory(device))
    return decoder


def _follow(
    decoder: Decoder, communicator: Communicator, share: Share, messages: Messages
) -> NoReturn:
    runner: FollowingRunner | None = None
    while True:
        message = messages.get()
        if isinstance(message, NewCache):
            runner = None  # The last cache's memory is free before the next one's is taken.
            runner = following_runner(decoder, communicator, share, message)
        elif runner is not None:
            runner.follow(message)
