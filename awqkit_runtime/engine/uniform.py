"""Random numbers that depend on a seed and a position alone."""

from __future__ import annotations

from functools import lru_cache

import numpy

#: Numbers that are made at once: the next ones of an answer are wanted soon.
_BLOCK = 64
#: Values that one position of the counter gives, of which the first is taken.
_VALUES_A_COUNT = 4
_KEPT_BLOCKS = 4096


def uniform_number(seed: int, position: int) -> float:
    """A number in [0, 1) for this seed and position (Philox: Salmon et al., SC 2011)."""
    block, place = divmod(position, _BLOCK)
    return _numbers(seed % 2**64, block)[place]


@lru_cache(_KEPT_BLOCKS)
def _numbers(seed: int, block: int) -> list[float]:
    generator = numpy.random.Philox(key=seed, counter=block * _BLOCK)
    bits = generator.random_raw(_VALUES_A_COUNT * _BLOCK)[::_VALUES_A_COUNT]
    return [float(number) for number in (bits >> numpy.uint64(11)) * 2.0**-53]
