import torch

from awqkit.stopwatch import Stopwatch


def test_stages_add_up() -> None:
    clock = Stopwatch(torch.device("cpu"))
    for _ in range(2):
        with clock.timed("one"):
            pass
    first = clock.seconds["one"]
    clock.add({"one": 5.0, "two": 1.0})
    assert 0 < first < 1
    assert clock.seconds == {"one": first + 5.0, "two": 1.0}
