"""Before torch is imported: waiting threads sleep soon, as in the commands."""

import signal

import awqkit.openmp  # noqa: F401

# A shell that starts the tests in the background has them ignore Ctrl-C, and with them every
# process that they start; the tests of Ctrl-C need it to work.
signal.signal(signal.SIGINT, signal.default_int_handler)
