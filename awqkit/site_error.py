"""How far a site's outputs are off, on the rows that only judge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from awqkit.search.affine import min_max_grid, round_to_nearest
from awqkit.search.moments import output_error
from awqkit.search.row_parts import row_parts
from awqkit.search.site import Rows
from awqkit.search.sites import Input


@dataclass(frozen=True)
class SiteError:
    """Squared error of linears' outputs, and their energy, per token."""

    noise: float = 0.0
    energy: float = 0.0

    @classmethod
    def of(cls, delta: Tensor, weight: Tensor, rows: Rows) -> SiteError:
        gram = rows.judge.gram
        return cls(float(output_error(delta, gram)), float(output_error(weight, gram)))

    def with_noise(self, delta: Tensor, rows: Rows) -> SiteError:
        """The same outputs, off by what another error of the weight does to them."""
        return SiteError(float(output_error(delta, rows.judge.gram)), self.energy)

    def __add__(self, other: SiteError) -> SiteError:
        return SiteError(self.noise + other.noise, self.energy + other.energy)

    @property
    def relative(self) -> float:
        return self.noise / self.energy if self.energy > 0 else 0.0


def nearest_error(block: Mapping[str, Tensor], reader: Input, rows: Rows) -> SiteError:
    """What plain rounding to nearest does to the linears that read an input."""
    error = SiteError()
    for linear in reader.linears:
        stored = block[f"{linear}.weight"]
        for part in row_parts(*stored.shape):
            weight = stored[part].float()
            rounded = round_to_nearest(weight, min_max_grid(weight))
            error = error + SiteError.of(rounded.sub_(weight), weight, rows)
    return error
