"""`python -m awqkit_runtime.engine.parallel` is a rank other than 0, told all on standard input."""

from __future__ import annotations

import signal


def main() -> None:
    # Ctrl-C is rank 0's affair, also in the second that the imports take.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from awqkit_runtime.engine.parallel.follower import main as follow

    follow()


if __name__ == "__main__":
    main()
