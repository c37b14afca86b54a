"""The HTTP side's end of the engine: starts its process, sends requests, sorts what comes back."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from itertools import count
from typing import Any

from awqkit_runtime.errors import AwqkitError
from awqkit_runtime.serve.errors import ApiError
from awqkit_runtime.serve.worker.messages import (
    LENGTH_BYTES,
    Abort,
    Failed,
    FromEngine,
    Piece,
    Ready,
    Refused,
    Start,
    Stats,
    Step,
    Submit,
    ToEngine,
    decode_from_engine,
    encode_frame,
    frame_length,
)

#: Seconds that a process whose socket was closed has to end by itself.
_LEAVING_SECONDS = 5.0

_GRAMMAR_FAILED = ApiError(
    400,
    "The answer could not be held to its grammar to the end: it grew too complex, or demands the "
    "text of a special token. Simplify it.",
    code="grammar",
)


class EngineStartError(AwqkitError):
    """The engine's process could not load the model."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class EngineEndedError(AwqkitError):
    """The engine's process is gone."""

    def __init__(self, code: int | None) -> None:
        super().__init__(
            f"The engine's process has ended with code {code}; what it printed says why. A process "
            "that was killed may have run out of memory. Start again."
        )


class Answer:
    """The pieces of one request, of all its choices, as they come."""

    def __init__(self, client: EngineClient, number: int, choices: int) -> None:
        self._client = client
        self._number = number
        self._unfinished = choices
        self._arrived: asyncio.Queue[Piece | ApiError] = asyncio.Queue()

    async def pieces(self, deadline: float) -> AsyncIterator[Piece]:
        """Until every choice has ended; ApiError when it ends otherwise.

        deadline: by the event loop's clock.
        """
        while self._unfinished:
            try:
                async with asyncio.timeout_at(deadline):
                    piece = await self._arrived.get()
            except TimeoutError:
                self.close()
                raise ApiError(
                    504, "The answer took longer than this server allows a request.", code="timeout"
                ) from None
            if isinstance(piece, ApiError):
                self._unfinished = 0
                raise piece
            if piece.finish_reason is not None:
                self._unfinished -= 1
            yield piece

    def put(self, piece: Piece | ApiError) -> None:
        self._arrived.put_nowait(piece)

    def close(self) -> None:
        """Frees what the engine still holds for it; may be called at any time, and again."""
        self._client.forget(self._number)


class EngineClient:
    """One engine process. Made by `start`; `gone` is set when the process has ended."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        ready: Ready,
    ) -> None:
        self.ready = ready
        self.stats = Stats(total_pages=ready.total_pages)
        self.gone = asyncio.Event()
        self._process = process
        self._reader = reader
        self._writer = writer
        self._numbers = count()
        self._answers: dict[int, Answer] = {}
        #: Choices of each request that have not ended in the engine.
        self._open: dict[int, int] = {}
        self._sorting = asyncio.create_task(self._sort(), name="engine messages")

    @classmethod
    async def start(cls, model: str, config: dict[str, Any]) -> EngineClient:
        """Loads a model in a new process. EngineStartError when that fails."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "awqkit_runtime.serve.worker.process",
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
            )
        reader, writer = await asyncio.open_connection(sock=ours)
        writer.write(encode_frame(Start(model=model, config=config)))
        try:
            first = await _receive(reader)
        except BaseException:
            process.kill()
            raise
        if isinstance(first, Ready):
            return cls(process, reader, writer, first)
        await process.wait()
        if isinstance(first, Failed):
            raise EngineStartError(first.message, first.exit_code)
        raise EngineStartError(
            f"The engine's process ended with code {process.returncode} while it loaded {model}; "
            "what it printed says why. A process that was killed may have run out of memory.",
            1,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """The process's, once it has ended."""
        return self._process.returncode

    def submit(self, prompts: list[list[int]], params: dict[str, Any], choices: int = 1) -> Answer:
        """Sends a request: `choices` answers to each prompt. ApiError when the engine is gone."""
        if self.gone.is_set():
            raise _gone()
        number = next(self._numbers)
        total = choices * len(prompts)
        answer = Answer(self, number, total)
        self._answers[number] = answer
        self._open[number] = total
        self._send(Submit(request=number, prompts=prompts, params=params, choices=choices))
        return answer

    def forget(self, number: int) -> None:
        """Ends a request, if it has not ended."""
        self._answers.pop(number, None)
        if self._open.pop(number, 0) and not self.gone.is_set():
            self._send(Abort(request=number))

    async def close(self) -> None:
        """Ends the process, and waits until it has."""
        self._writer.close()
        try:
            async with asyncio.timeout(_LEAVING_SECONDS):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        await self._sorting

    def _send(self, message: ToEngine) -> None:
        self._writer.write(encode_frame(message))

    async def _sort(self) -> None:
        """Hands out what comes, until the process ends, or says what is no message."""
        try:
            while (message := await _receive(self._reader)) is not None:
                self._hand_out(message)
        finally:
            self._end()

    def _hand_out(self, message: FromEngine) -> None:
        if isinstance(message, Step):
            self.stats = message.stats
            for piece in message.pieces:
                self._deliver(piece)
        elif isinstance(message, Refused):
            self._refuse(message)

    def _end(self) -> None:
        self.gone.set()
        self._open.clear()
        for answer in self._answers.values():
            answer.put(_gone())
        self._answers.clear()

    def _deliver(self, piece: Piece) -> None:
        answer = self._answers.get(piece.request)
        if answer is None:
            return  # Its client left while this was on its way.
        answer.put(_GRAMMAR_FAILED if piece.finish_reason == "error" else piece)
        if piece.finish_reason is not None:
            self._end_choices(piece.request, 1)

    def _end_choices(self, number: int, choices: int) -> None:
        self._open[number] -= choices
        if self._open[number] == 0:
            del self._open[number], self._answers[number]

    def _refuse(self, message: Refused) -> None:
        answer = self._answers.get(message.request)
        if answer is not None:
            answer.put(ApiError(400 if message.invalid else 500, message.message))
            self._end_choices(message.request, self._open[message.request])


async def _receive(reader: asyncio.StreamReader) -> FromEngine | None:
    """The next message; None when the process is gone."""
    try:
        header = await reader.readexactly(LENGTH_BYTES)
        return decode_from_engine(await reader.readexactly(frame_length(header)))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def _gone() -> ApiError:
    return ApiError(503, "The engine has stopped; the server ends.", code="engine_stopped")
