"""Search for the input scales of a site (Lin et al., 2023, "AWQ", section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from awqkit.search.affine import in_groups, min_max_grid, round_to_nearest
from awqkit.search.moments import Moments, output_error
from awqkit.search.products import has_triton

IDENTITY = "identity"
#: Powers of the activations' magnitude. They are tried in steps of two, and then between the best
#: and its neighbours, since the loss is smooth in them.
RATIOS = tuple(step / 20 for step in range(20))


@dataclass(frozen=True)
class ScaleChoice:
    """scale: what the linears' inputs are divided by, float32 [in]; loss: its output error."""

    scale: Tensor
    loss: float
    description: str

    @property
    def is_identity(self) -> bool:
        return self.description == IDENTITY


def rank_scales(
    weights: Sequence[Tensor],
    moments: Moments,
    *,
    tie: Callable[[Tensor], Tensor],
    realise: Callable[[Tensor], Tensor],
) -> list[ScaleChoice]:
    """The candidates tried, the one with the least output error after rounding to nearest first.

    weights: the linears that read this input, float32 [out_i, in].
    tie: makes a per-channel statistic [in] agree among channels that must share a scale
        (query heads over one value head).
    realise: the scale that counts once the op before has been stored, [in] → [in].
    """
    activation = tie(moments.magnitude)
    magnitude = tie(weight_magnitude(weights))
    loss_of = _losses(weights, moments.gram)

    def tried(description: str, wanted: Tensor) -> ScaleChoice:
        scale = realise(wanted)
        return ScaleChoice(scale, loss_of(scale), description)

    choices = [tried(IDENTITY, torch.ones_like(activation))]
    for family in (
        lambda ratio: _by_activation(activation, ratio),
        lambda ratio: _by_both(activation, magnitude, ratio),
    ):
        found = {ratio: tried(*family(ratio)) for ratio in RATIOS[::2]}
        best = RATIOS.index(min(found, key=lambda ratio: found[ratio].loss))
        beside = (index for index in (best - 1, best + 1) if 0 <= index < len(RATIOS))
        found |= {RATIOS[index]: tried(*family(RATIOS[index])) for index in beside}
        choices += found.values()
    return sorted(choices, key=lambda choice: choice.loss)


def _losses(weights: Sequence[Tensor], gram: Tensor) -> Callable[[Tensor], float]:
    """`rounding_loss` by the scale."""
    if not (gram.is_cuda and has_triton()):
        return partial(rounding_loss, weights, gram)
    from awqkit.search.scale_kernel import RoundingLosses

    return RoundingLosses(weights, gram).of


def rounding_loss(weights: Sequence[Tensor], gram: Tensor, scale: Tensor) -> float:
    """Output error, summed over the linears, of rounding W·scale to nearest; scale: [in]."""
    loss = torch.zeros((), device=gram.device)
    for weight in weights:
        scaled = weight * scale
        rounded = round_to_nearest(scaled, min_max_grid(scaled))
        loss += output_error(rounded.sub_(scaled).div_(scale), gram)
    return float(loss)


def weight_magnitude(weights: Sequence[Tensor]) -> Tensor:
    """Mean over all rows of |w| relative to its group's largest, float32 [in]."""
    relative = []
    for weight in weights:
        grouped = in_groups(weight.abs())
        relative.append((grouped / grouped.amax(-1, keepdim=True).clamp(min=1e-12)).flatten(-2))
    return torch.cat(relative).mean(0)


def _by_activation(activation: Tensor, ratio: float) -> tuple[str, Tensor]:
    return f"x^{ratio:.2f}", normalised(activation**ratio, activation)


def _by_both(activation: Tensor, magnitude: Tensor, ratio: float) -> tuple[str, Tensor]:
    wanted = activation**ratio / (magnitude ** (1 - ratio)).clamp(min=1e-4)
    return f"x^{ratio:.2f} / w^{1 - ratio:.2f}", normalised(wanted, activation)


def normalised(scale: Tensor, activation: Tensor) -> Tensor:
    """Scale centred on 1 (geometric middle of its extremes); 1 where the channel never fires."""
    fires = activation > 0
    if not fires.any():
        return torch.ones_like(scale)
    live = scale[fires].clamp(min=1e-4)
    centred = scale.clamp(min=1e-4) / (live.max() * live.min()).sqrt()
    return torch.where(fires, centred, torch.ones_like(scale))
