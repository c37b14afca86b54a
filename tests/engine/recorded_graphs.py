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
    result that depends on it is stale. As on a GPU, a capture itself leaves everything as it was.
    """

    def __init__(self) -> None:
        self.captures = 0
        self.replays = 0

    def capture(self, compute: Callable[[], object]) -> Callable[[], None]:
        self.captures += 1
        recorder = _Recorder()
        with recorder:
            compute()
        recorder.undo()

        def replay() -> None:
            self.replays += 1
            for repeat in recorder.operations:
                repeat()

        return replay


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Callable[[], None]] = []
        #: What was written to, by its address, and what it held.
        self._before: dict[int, tuple[Any, Any]] = {}

    def undo(self) -> None:
        for storage, content in self._before.values():
            storage.copy_(content)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise AssertionError("the host looks at a number while a graph is captured")
        kwargs = kwargs or {}
        self._keep(func, args, kwargs)
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

    def _keep(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Notes what the operation is about to write over."""
        named = zip((one.name for one in func._schema.arguments), args, strict=False)
        values = {**dict(named), **kwargs}
        for one in func._schema.arguments:
            value = values.get(one.name)
            if one.alias_info is not None and one.alias_info.is_write and value is not None:
                storage = value.untyped_storage()
                self._before.setdefault(storage.data_ptr(), (storage, storage.clone()))
