"""`python -m awqkit_runtime.serve.worker FD` is the engine's process; FD is a connected socket."""

from __future__ import annotations

import signal
import sys


def main() -> int:
    # The HTTP side decides when it is over; Ctrl-C and a supervisor's signal reach both, also in
    # the second that the imports take.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    from awqkit_runtime.serve.worker.process import main as serve

    return serve(int(sys.argv[1]))


if __name__ == "__main__":
    sys.exit(main())
