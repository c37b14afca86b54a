"""awqkit-runtime, and python -m awqkit_runtime, from their first moment."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """The imports take a second, in which Ctrl-C may come."""
    try:
        from awqkit_runtime.cli import main as commands
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    commands()


if __name__ == "__main__":
    main()
