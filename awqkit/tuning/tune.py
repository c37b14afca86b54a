"""The last stage of quantizing: all codes of a model together, towards the whole model's outputs.

Rounding against a linear's own output, however well, leaves errors that add up in ways that only
the whole model shows. Here the codes follow the gradient of the divergence from the original
model's predictions, for a few passes over the calibration rows, and rows held out from that decide
whether, and after which pass, the result is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from awqkit.checkpoint import QuantizedWeight
from awqkit.tuning.blocks import Stored, TunedBlocks
from awqkit.tuning.divergence import Readout, divergence, divergence_gradient

#: Passes over the rows; tokens in a step, at most, but at least one row. Of few rows, fewer a step,
#: so that there are that many steps: the first ones do harm that the later ones make good.
EPOCHS = 2
STEP_TOKENS = 4096
LEAST_STEPS = 112
#: How far all steps together move a value whose gradient never turns, in codes. Given so, and not a
#: step, it means the same for few rows and many.
TRAVEL = 0.8
#: Share of the steps over which they grow to full size, before they shrink to nothing, both evenly.
WARM_UP = 0.1


@dataclass(frozen=True, kw_only=True)
class TuningRows:
    """embedded: what enters the first block; original: what leaves the original's last one.

    Both [rows, T, hidden], on the device or on the host.
    """

    embedded: Tensor
    original: Tensor


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Divergences from the original model on the judging rows, in nats per token.

    by_pass: before the first pass and after each.  kept: the pass whose codes are kept; 0, none.
    changed: share of the codes that differ from those before.
    """

    by_pass: tuple[float, ...]
    kept: int
    changed: float


def tune(
    blocks: Sequence[Stored],
    model: TunedBlocks,
    readout: Readout,
    *,
    search: TuningRows,
    judge: TuningRows,
    seed: int,
    on_step: Callable[[int, int], None],
) -> tuple[list[dict[str, Tensor | QuantizedWeight]], Tuning]:
    """The blocks with the codes that serve the judging rows best.

    blocks: as they would be stored without.  model: the same, on the device that computes.
    on_step: called with the steps done and their total.
    """
    device = readout.head.device
    size = max(1, STEP_TOKENS // search.embedded.shape[1])
    rows = len(search.embedded)
    a_step = max(1, min(size, rows * EPOCHS // LEAST_STEPS))
    rates = _rates(EPOCHS * -(-rows // a_step))
    generator = torch.Generator().manual_seed(seed)
    history, best, count = [_judge(model, readout, judge, size)], 0, 0
    kept = _codes(model, len(blocks))
    for epoch in range(1, EPOCHS + 1):
        for chosen in torch.randperm(rows, generator=generator).split(a_step):
            entering = model.remember(search.embedded[chosen].to(device))
            original = search.original[chosen].to(device)
            gradient = divergence_gradient(readout, entering[-1], original)
            model.step(entering, gradient, rate=rates[count], count=count + 1)
            count += 1
            on_step(count, len(rates))
        history.append(_judge(model, readout, judge, size))
        if history[-1] < history[best]:
            best, kept = epoch, _codes(model, len(blocks))
    tuned = [_with_codes(block, codes) for block, codes in zip(blocks, kept, strict=True)]
    changed = _changed(blocks, tuned)
    return tuned, Tuning(by_pass=tuple(history), kept=best, changed=changed)


def _rates(total: int) -> list[float]:
    """How far each of so many steps moves a value, in codes."""
    warm_up = max(1.0, WARM_UP * total)
    shape = [min(1.0, step / warm_up) * (1 - (step - 1) / total) for step in range(1, total + 1)]
    whole = sum(shape)
    return [TRAVEL * part / whole for part in shape]


def _judge(model: TunedBlocks, readout: Readout, rows: TuningRows, size: int) -> float:
    total, device = 0.0, readout.head.device
    for embedded, original in zip(
        rows.embedded.split(size), rows.original.split(size), strict=True
    ):
        mean = divergence(readout, model.forward(embedded.to(device)), original.to(device))
        total += mean * len(embedded)
    return total / len(rows.embedded)


def _codes(model: TunedBlocks, layers: int) -> list[dict[str, Tensor]]:
    """On the host, where the best codes wait."""
    return [
        {name: codes.cpu() for name, codes in model.codes(layer).items()} for layer in range(layers)
    ]


def _with_codes(block: Stored, codes: dict[str, Tensor]) -> dict[str, Tensor | QuantizedWeight]:
    return {
        name: QuantizedWeight(
            codes=codes[name].to(weight.codes.device), scales=weight.scales, zeros=weight.zeros
        )
        if isinstance(weight, QuantizedWeight)
        else weight
        for name, weight in block.items()
    }


def _changed(before: Sequence[Stored], after: Sequence[Stored]) -> float:
    changed = total = 0
    for old, new in zip(before, after, strict=True):
        for name, weight in old.items():
            other = new[name]
            if isinstance(weight, QuantizedWeight) and isinstance(other, QuantizedWeight):
                changed += int((weight.codes != other.codes).sum())
                total += weight.codes.numel()
    return changed / max(1, total)
