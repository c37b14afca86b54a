"""The engine's process: loads a model, and serves what messages ask of it.

Run as `python -m awqkit_runtime.serve.worker.process FD`, where FD is a connected socket.
"""

from __future__ import annotations

import awqkit_runtime.openmp  # noqa: F401  isort: skip  (before torch)

import signal
import socket
import sys
from typing import TYPE_CHECKING

from awqkit_runtime.config import EngineConfig
from awqkit_runtime.cuda_start import start_cuda
from awqkit_runtime.errors import AwqkitError, RankError
from awqkit_runtime.notes import quiet_libraries
from awqkit_runtime.serve.worker.mailbox import Mailbox
from awqkit_runtime.serve.worker.messages import Failed, Ready, Start
from awqkit_runtime.serve.worker.worker import Worker

if TYPE_CHECKING:
    from awqkit_runtime.engine.plan import MemoryPlan


def main(descriptor: int) -> int:
    """Serves until the HTTP side closes the socket, which ends the process."""
    # The HTTP side decides when it is over; Ctrl-C and a supervisor's signal reach both.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    quiet_libraries()
    mailbox = Mailbox(socket.socket(fileno=descriptor))
    start = mailbox.wait()
    if not isinstance(start, Start):
        raise TypeError(f"expected Start, got {type(start).__name__}")
    start_cuda(str(start.config.get("device", EngineConfig.device)))
    from awqkit_runtime.engine.loading import load_engine

    try:
        engine, text = load_engine(start.model, EngineConfig(**start.config), announce=_announce)
    except AwqkitError as error:
        mailbox.send(Failed(message=str(error), exit_code=error.exit_code))
        return error.exit_code
    stats = engine.stats()
    mailbox.send(
        Ready(
            folder=str(text.folder),
            session_len=engine.session_len,
            max_batch_size=engine.max_batch_size,
            total_pages=stats.total_pages,
        )
    )
    try:
        Worker(engine, mailbox).serve()
    except RankError as error:
        print(f"Error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0


def _announce(plan: MemoryPlan) -> None:
    """To standard error, which both processes share."""
    print(plan.line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
