"""Places for answers."""

from __future__ import annotations

import pytest

from awqkit_runtime.serve.errors import ApiError
from awqkit_runtime.serve.limits import Admission


def test_places_are_taken_and_given_back() -> None:
    admission = Admission(3, clock=lambda: 0.0)
    admission.take(2)
    with pytest.raises(ApiError) as caught:
        admission.take(2)
    assert caught.value.status == 429 and admission.taken == 2
    admission.give_back(2)
    admission.take(3)


def test_the_time_to_wait_follows_the_pace() -> None:
    now = 0.0
    admission = Admission(10, clock=lambda: now)
    admission.take(10)
    for _ in range(10):
        now += 3.0
        admission.give_back(1)
        admission.take(1)

    def wait(count: int) -> int:
        with pytest.raises(ApiError) as caught:
            admission.take(count)
        return int(caught.value.headers["retry-after"])

    assert 2 <= wait(1) <= 4 and 10 <= wait(4) <= 16
    assert wait(1000) == 60
