"""The rows of a conversion between two blocks: what this process holds of them, and all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

import torch
from torch import Tensor

from awqkit.activations import placed
from awqkit.calibration.dataset import CalibrationRows
from awqkit.evaluate import HeldOutRows
from awqkit.ranks.ranks import Ranks
from awqkit.row_share import RowShare, Shares, in_order

HIDDEN, ORIGINAL, HELD_OUT = "hidden", "original", "held_out."
#: tokens int64 [rows, T] as [rows, T, hidden], beside other rows that may be on the device already.
Embed = Callable[[Tensor, Tensor | None], Tensor]


class Streams:
    """hidden: calibration rows [n, T, hidden] as the quantized model has them.

    original: the same in the unquantized model, where something aims at them.  held_out: the rows
    that only the evaluation sees.  Of all three, this process's share.
    """

    def __init__(
        self,
        rows: CalibrationRows,
        *,
        embed: Embed,
        embed_original: Embed,
        with_original: bool,
        batch_size: int,
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        """embed: by the quantized model's embedding; embed_original: by the source's."""
        self._ranks = ranks
        self._device = device
        self._shares = Shares.of(
            rows=len(rows.tokens),
            held_out=len(rows.held_out),
            batch_size=batch_size,
            rank=ranks.rank,
            count=ranks.count,
        )
        tokens = rows.tokens[list(self.share.rows)]
        self.hidden = embed(tokens, None)
        self.original = embed_original(tokens, self.hidden) if with_original else None
        self._held_out_tokens = rows.held_out
        held_out = rows.held_out[list(self._own_held_out)]
        self.held_out = HeldOutRows(
            held_out,
            embed_original(held_out, None).to(device),
            embed(held_out, None).to(device),
        )

    @property
    def share(self) -> RowShare:
        """Which of the calibration rows are here."""
        return self._shares.calibration[self._shares.own]

    @property
    def nbytes(self) -> int:
        """Bytes of what `tensors` gives."""
        row = prod(self.hidden.shape[1:]) * self.hidden.itemsize
        streams = 1 if self.original is None else 2
        calibration = sum(len(share.rows) for share in self._shares.calibration)
        return row * (streams * calibration + 3 * len(self._held_out_tokens))

    def tensors(self) -> dict[str, Tensor]:
        """All processes' rows, in their order; the first process alone is given them.

        Alone, a process gives its own, which the next block changes in place.
        """
        shares = tuple(share.rows for share in self._shares.calibration)
        original = {} if self.original is None else {ORIGINAL: self.original}
        calibration = {HIDDEN: self.hidden, **original}
        held_out = {HELD_OUT + name: rows for name, rows in self.held_out.streams().items()}
        if self._ranks.count == 1:
            return calibration | held_out
        whole = {name: self._whole(rows, shares) for name, rows in calibration.items()}
        whole |= {name: self._whole(rows, self._shares.held_out) for name, rows in held_out.items()}
        return {name: rows for name, rows in whole.items() if rows is not None}

    def kept_rows(self) -> dict[str, tuple[int, ...]]:
        """Of the tensors that `tensors` gives, the rows that `go_on_from` needs here."""
        held_out = (HELD_OUT + name for name in self.held_out.streams())
        return {
            HIDDEN: self.share.rows,
            ORIGINAL: self.share.rows,
            **dict.fromkeys(held_out, self._own_held_out),
        }

    def go_on_from(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the place of rows that have passed some blocks already. tensors: `kept_rows`."""
        self.hidden = placed(tensors[HIDDEN], self._device)
        if self.original is not None:
            self.original = placed(tensors[ORIGINAL], self._device, beside=self.hidden)
        self.held_out.go_on_from(
            {
                name.removeprefix(HELD_OUT): tensor
                for name, tensor in tensors.items()
                if name.startswith(HELD_OUT)
            }
        )

    def begin_held_out_again(self, embed: Embed) -> None:
        """Take the quantized model's held-out rows back to where they entered it."""
        tokens = self._held_out_tokens[list(self._own_held_out)]
        self.held_out.begin_again(embed(tokens, None))

    def whole_held_out(self) -> HeldOutRows | None:
        """All held-out rows, in the first process; None in the others."""
        if self._ranks.count == 1:
            return self.held_out
        streams = {
            name: self._whole(rows, self._shares.held_out)
            for name, rows in self.held_out.streams().items()
        }
        present = {
            name: rows.to(self._device) for name, rows in streams.items() if rows is not None
        }
        if not present:
            return None
        whole = HeldOutRows(self._held_out_tokens, present["original"], present["quantized"])
        whole.go_on_from(present)
        return whole

    @property
    def _own_held_out(self) -> tuple[int, ...]:
        return self._shares.held_out[self._shares.own]

    def _whole(self, rows: Tensor, shares: tuple[tuple[int, ...], ...]) -> Tensor | None:
        parts = self._ranks.collect(rows, [len(share) for share in shares])
        return in_order(parts, shares) if parts else None
