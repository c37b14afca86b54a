"""How many inputs' moments are gathered at once: those of all experts can outgrow any memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from awqkit.search.sites import Input

#: Of the moments in memory together. A dense block's never reach it.
MAX_BYTES = 4 << 30
#: float32, of the rows that are searched and of those that judge.
_BYTES_PER_PRODUCT = 2 * 4


def batches_of(inputs: Sequence[Input], block: Mapping[str, Tensor]) -> Iterator[list[Input]]:
    """The inputs in order, in batches whose moments fit together; at least one in each.

    block: holds the weights [out, in] of the inputs' linears. An input that comes twice counts
    once.
    """
    batch: list[Input] = []
    taken = 0
    for reader in {reader.name: reader for reader in inputs}.values():
        width = block[f"{reader.linears[0]}.weight"].shape[1]
        size = _BYTES_PER_PRODUCT * width * width
        if batch and taken + size > MAX_BYTES:
            yield batch
            batch, taken = [], 0
        batch.append(reader)
        taken += size
    if batch:
        yield batch
