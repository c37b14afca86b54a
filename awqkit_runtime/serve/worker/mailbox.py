"""The engine process's end of the socket: a thread that reads, and writes without a queue."""

from __future__ import annotations

import os
import queue
import socket
import threading

from awqkit_runtime.serve.worker.messages import (
    LENGTH_BYTES,
    FromEngine,
    ToEngine,
    decode_to_engine,
    encode_frame,
    frame_length,
)


class Mailbox:
    """Messages of the HTTP side, and the way to answer.

    When the HTTP side is gone, so is every reason to go on: the process then ends at once, also
    in the middle of a step.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._inbox: queue.SimpleQueue[ToEngine] = queue.SimpleQueue()
        threading.Thread(target=self._read, name="mailbox", daemon=True).start()

    def wait(self, seconds: float | None = None) -> ToEngine | None:
        """The next message; None where none comes within so many seconds."""
        try:
            return self._inbox.get(timeout=seconds)
        except queue.Empty:
            return None

    def arrived(self) -> list[ToEngine]:
        """What has come by now."""
        return [self._inbox.get_nowait() for _ in range(self._inbox.qsize())]

    def send(self, message: FromEngine) -> None:
        try:
            self._connection.sendall(encode_frame(message))
        except OSError:
            os._exit(0)

    def _read(self) -> None:
        with self._connection.makefile("rb") as stream:
            while header := stream.read(LENGTH_BYTES):
                self._inbox.put(decode_to_engine(stream.read(frame_length(header))))
        os._exit(0)
