"""The other ranks as rank 0 sees them: processes that load their shares and follow its steps."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, cast

import torch
import torch.distributed as dist

from awqkit_runtime.config import EngineConfig
from awqkit_runtime.engine.parallel.communicator import (
    LOOPBACK,
    PATIENCE,
    Communicator,
    arrival_key,
)
from awqkit_runtime.engine.parallel.messages import Assignment, Message, encode, send_assignment
from awqkit_runtime.engine.parallel.shares import Share
from awqkit_runtime.errors import ConfigError, RankError

#: Seconds that an ended rank may take to be seen as such, and a dismissed one to end.
_NOTICE_SECONDS = 3.0


class Team:
    """Ranks 1 … ranks − 1, each a process of this machine. close() ends them.

    They end with this process, too, however it ends: they read from its pipes.
    """

    def __init__(self, folder: Path, config: EngineConfig, device: torch.device) -> None:
        """Starts them and connects with them; RankError when one has ended meanwhile.

        device: this rank's own; on a machine with GPUs rank r has the r-th one after it.
        """
        self.ranks = config.tp
        self._device = device
        self._closing = False
        self._lost = False
        self._threads = torch.get_num_threads()
        threads = max(1, self._threads // self.ranks)
        store = dist.TCPStore(LOOPBACK, 0, is_master=True, wait_for_workers=False, timeout=PATIENCE)
        self._processes = [
            _start(
                Assignment(
                    model=str(folder),
                    model_format=config.model_format,
                    device=str(rank_device(device, rank)),
                    dtype=str(config.dtype),
                    session_len=config.session_len,
                    rank=rank,
                    ranks=self.ranks,
                    port=store.port,
                    threads=threads,
                    max_rows=config.batch_size_for(device),
                )
            )
            for rank in range(1, self.ranks)
        ]
        self._communicator: Communicator | None = None
        for process in self._processes:
            threading.Thread(target=self._watch, args=(process,), daemon=True).start()
        torch.set_num_threads(threads)
        try:
            self._await(store)
            self._communicator = self._connected(store)
            if self._lost:  # Who watches may have come too early to abort it.
                raise RuntimeError("a rank has ended as soon as it was connected")
        except RuntimeError as error:
            self.raise_if_ended(error)
            self.close()
            raise
        except BaseException:
            self.close()
            raise

    @property
    def communicator(self) -> Communicator:
        assert self._communicator is not None
        return self._communicator

    @property
    def pids(self) -> list[int]:
        """Of ranks 1, 2, …"""
        return [process.pid for process in self._processes]

    def _await(self, store: dist.Store) -> None:
        """Returns when all are about to connect; RuntimeError as in _until."""
        expected = [arrival_key(rank) for rank in range(1, self.ranks)]
        self._until(lambda: store.check(expected))

    def _connected(self, store: dist.Store) -> Communicator:
        """With all ranks; RuntimeError as in _until.

        In a thread, which is left to itself where a rank ends: nothing else ends its wait.
        """
        connected: Future[Communicator] = Future()

        def connect() -> None:
            try:
                share = Share(rank=0, ranks=self.ranks)
                connected.set_result(Communicator(store, share, self._device))
            except BaseException as error:  # noqa: BLE001  (raised where the result is asked for)
                connected.set_exception(error)

        threading.Thread(target=connect, daemon=True).start()
        self._until(connected.done)
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # Which that thread did for itself alone.
        return connected.result()

    def _until(self, done: Callable[[], bool]) -> None:
        """Waits for it; RuntimeError when a rank has ended, or it takes too long."""
        deadline = time.monotonic() + PATIENCE.total_seconds()
        while not done():
            if any(process.poll() is not None for process in self._processes):
                raise RuntimeError("a rank has ended before it was connected")
            if time.monotonic() > deadline:
                raise RuntimeError(f"the {self.ranks} ranks were not connected within {PATIENCE}")
            time.sleep(0.02)

    def tell(self, message: Message) -> None:
        """RankError when a rank is gone."""
        frame = encode(message)
        try:
            for process in self._processes:
                stream = _input(process)
                stream.write(frame)
                stream.flush()
        except (OSError, ValueError) as error:  # A broken pipe, or one that was closed for that.
            self.raise_if_ended(error)
            raise

    def raise_if_ended(self, error: Exception) -> None:
        """RankError where a rank that has ended is behind `error`; the others are then ended."""
        deadline = time.monotonic() + _NOTICE_SECONDS
        while time.monotonic() < deadline:
            for rank, process in enumerate(self._processes, start=1):
                code = process.poll()
                if code is not None:
                    self.close()
                    raise RankError(
                        f"Rank {rank} of {self.ranks} has ended with code {code}, so the engine "
                        "cannot go on; what that process printed says why. One that was killed "
                        "may have run out of memory. Start again."
                    ) from error
            time.sleep(0.05)

    def require_all(self) -> None:
        """RankError where a rank has ended: what the devices gave since then means nothing."""
        if self._lost:
            self.raise_if_ended(RuntimeError("a rank is gone"))

    def close(self) -> None:
        """Ends the ranks, once they are through with what was launched; may be called again."""
        if self._closing:
            return
        if self._device.type == "cuda" and self._communicator is not None:
            with suppress(RuntimeError):  # Of a device that has failed, as others were told.
                torch.cuda.synchronize(self._device)
        self._closing = True
        for process in self._processes:
            with suppress(OSError):  # Gone already, and what was left to write with it.
                _input(process).close()
        _wait(self._processes)
        torch.set_num_threads(self._threads)

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        process.wait()
        self._lost = True
        if not self._closing and self._communicator is not None:
            self._communicator.abort()


def rank_device(device: torch.device, rank: int) -> torch.device:
    """The r-th GPU after rank 0's; the CPU is shared."""
    if device.type == "cpu":
        return device
    return torch.device("cuda", (device.index or 0) + rank)


def require_devices(config: EngineConfig, device: torch.device) -> None:
    """ConfigError where there are fewer GPUs than ranks."""
    if device.type == "cpu":
        return
    present = torch.cuda.device_count() - (device.index or 0)
    if present < config.tp:
        raise ConfigError(
            f"tp is {config.tp}, but there are {present} GPUs from {device} on; use no more ranks."
        )


def _start(assignment: Assignment) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-m", "awqkit_runtime.engine.parallel"], stdin=subprocess.PIPE
    )
    with suppress(OSError):  # Of a process that has ended already, as its code will tell.
        send_assignment(_input(process), assignment)
    return process


def _input(process: subprocess.Popen[bytes]) -> BinaryIO:
    return cast(BinaryIO, process.stdin)


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + _NOTICE_SECONDS
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
