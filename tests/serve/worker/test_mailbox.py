"""Waiting for messages that come, and for such as do not."""

from __future__ import annotations

import subprocess
import sys

#: In a process of its own, which ends with its socket.
_WAITS = """
import socket
from awqkit_runtime.serve.worker.mailbox import Mailbox
from awqkit_runtime.serve.worker.messages import Abort, encode_frame
ours, theirs = socket.socketpair()
mailbox = Mailbox(theirs)
assert mailbox.wait(0.01) is None
ours.sendall(encode_frame(Abort(request=3)))
assert mailbox.wait(60) == Abort(request=3)
ours.sendall(encode_frame(Abort(request=4)))
assert mailbox.wait() == Abort(request=4)
print("as they came", flush=True)
ours.close()
mailbox.wait()
print("never")
"""


def test_a_wait_ends_with_a_message_its_time_or_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", _WAITS], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "as they came\n", "")
