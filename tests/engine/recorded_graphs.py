"""Graphs for tests without a GPU: torch operations, recorded once and repeated as they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten


class RecordedGraphs:
    """GraphCapture that repeats operations on the very tensors of the capture, as a GPU does.

    What code does besides (a list that it reads, a number that it looks at) is not repeated, so a
    result that depends on it is stale.
    """

    def __init__(self) -> None:
        self.captures = 0
        self.replays = 0

    def capture(self, compute: Callable[[], object]) -> Callable[[], None]:
        self.captures += 1
        recorder = _Recorder()
        with recorder:
            compute()

        def replay() -> None:
            self.replays += 1
            for repeat in recorder.operations:
                repeat()

        return replay


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Callable[[], None]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise AssertionError("the host looks at a number while a graph is captured")
        kwargs = kwargs or {}
        results = func(*args, **kwargs)

        def repeat() -> None:
            again = func(*args, **kwargs)
            pairs = zip(tree_flatten(results)[0], tree_flatten(again)[0], strict=True)
            for kept, new in pairs:
                if isinstance(kept, Tensor) and kept.data_ptr() != new.data_ptr():
                    assert kept.shape == new.shape, f"{func} gave another shape"
                    kept.copy_(new)

        self.operations.append(repeat)
        return results
