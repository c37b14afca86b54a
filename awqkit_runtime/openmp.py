"""How torch's threads wait for one another; imported by the commands before torch is.

OpenMP's threads spin for milliseconds where they wait. On a machine that is shared, a thread that
was given no processor keeps the others spinning through hundreds of waits a step, so that a busy
neighbour makes small models some thirty times slower. Spinning briefly and then sleeping costs
microseconds where the machine is idle.
"""

import os

#: Turns of libgomp's waiting loop before a thread sleeps: a few microseconds.
SPIN_COUNT = "1000"

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
