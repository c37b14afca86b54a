"""Half a block from float weights to integers: capture, scale, fold, prove, clip, round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from itertools import groupby
from operator import add

import torch
from torch import Tensor

from awqkit.block_job import Block, BlockJob, SiteResult
from awqkit.checkpoint import QuantizedWeight
from awqkit.fold_proof import prove_fold
from awqkit.half_moments import half_moments
from awqkit.half_task import HalfTask
from awqkit.moment_batches import batches_of
from awqkit.ranks.ranks import in_turns, shared_out
from awqkit.search.affine import rounding_offsets, to_quantized_weight
from awqkit.search.fold import fold
from awqkit.search.moments import divided_by
from awqkit.search.row_parts import row_parts
from awqkit.search.site import RoundedLinear, Rows, round_linear
from awqkit.search.sites import Input, Site, feeder_scale
from awqkit.site_error import SiteError, nearest_error
from awqkit.site_picture import Sketch, channel_profile
from awqkit.site_scale import site_scale

#: Of the first row, the tokens on which a fold is proven, in float32; experts take the whole row,
#: so that many of them see a token.
PROOF_TOKENS = 512

Integers = dict[str, Tensor | QuantizedWeight]


def quantize_half(
    job: BlockJob, task: HalfTask, block: Block, hidden: Tensor
) -> tuple[Block, Integers]:
    """The block with this half as it will be stored, in the compute dtype, and its integers.

    hidden: this process's rows [n, T, hidden] that enter the half, on the job's device or on the
    host.
    """
    search = _HalfSearch(job, task, block, hidden)
    search.scale()
    has_experts = job.config.experts_of(task.layer) is not None
    if job.ranks.rank == 0:  # which always holds a row
        with job.timed("scales"):
            prove_fold(
                partial(task.run, replace(job, compute_dtype=torch.float32), task.layer),
                before=block,
                after=search.block,
                rows=hidden[:1, : None if has_experts else PROOF_TOKENS].to(job.device),
                layer=task.layer,
                has_experts=has_experts,
            )
    return search.round()


@dataclass(frozen=True, kw_only=True)
class _RoundedInput:
    """linears: those that read the input, stacked; error, sketch: what to tell of them."""

    linears: RoundedLinear
    error: SiteError
    sketch: Sketch


class _HalfSearch:
    """block: this half as far as it has come."""

    def __init__(self, job: BlockJob, task: HalfTask, block: Block, hidden: Tensor) -> None:
        self.block = block
        self._job = job
        self._task = task
        self._hidden = hidden
        #: The same half, unquantized, with as much folded into it.
        self._unrounded = block
        self._scales: dict[str, str] = {}
        #: What the outputs of a linear were divided by, [out].
        self._divisors: dict[str, Tensor] = {}
        self._nearest: dict[str, SiteError] = {}
        self._channels: dict[str, tuple[float, ...]] = {}
        self._sketches: list[Sketch] = []
        #: Of all inputs, where they fit into memory together; else they are captured in turn.
        self._kept: dict[str, Rows] = {}

    def scale(self) -> None:
        """Choose each site's scale on the unfolded block, and fold them all."""
        sites, original = self._task.sites, self.block
        read = [reader for site in sites for reader in site.inputs]
        batches = list(batches_of([*read, *map(_pooled, sites)], original))
        scales: dict[str, Tensor] = {}
        for batch in batches:
            moments = self._moments(batch, drifting=sites[:1])
            with self._job.timed("scales"):
                for reader in batch:
                    if reader in read:
                        rows = moments[reader.name]
                        self._nearest[reader.name] = nearest_error(original, reader, rows)
                seen = [site for site in sites if site.name in moments]
                for turn in in_turns(self._job.ranks, seen):
                    works = [partial(self._scale, site, moments[site.name]) for site in turn]
                    choices = shared_out(self._job.ranks, works)
                    for site, (chosen, described) in zip(turn, choices, strict=True):
                        self._channels[site.name] = channel_profile(moments[site.name].search)
                        self._scales[site.name] = described
                        scales |= {reader.name: chosen for reader in (_pooled(site), *site.inputs)}
            if len(batches) == 1:
                self._kept = moments
        for site in sites:
            self.block = fold(self.block, site, self._job.config, scales[site.name])
            if not site.feeder_is_norm:
                divisor = feeder_scale(site, self._job.config, scales[site.name])
                self._divisors[site.feeder] = divisor
        for name in self._kept:  # one by one: a wide input's matrices are as large as the weights
            scale, rows = scales[name], self._kept[name]
            self._kept[name] = Rows(divided_by(rows.search, scale), divided_by(rows.judge, scale))

    def round(self) -> tuple[Block, Integers]:
        """Clip and round; what comes second reads what the first has become."""
        for site in self._task.sites:
            self.block = _store_feeder(self._job, site, self.block)
        dtype = self._job.compute_dtype  # in which it runs, and half as large
        self._unrounded = {name: tensor.to(dtype) for name, tensor in self.block.items()}
        integers: Integers = {}
        for position, (kind, group) in enumerate(groupby(self._task.sites, lambda s: s.kind)):
            sites = tuple(group)
            inputs = [reader for site in sites for reader in site.inputs]
            errors, kept = SiteError(), set[str]()
            for batch in batches_of(inputs, self.block):
                moments = self._kept
                if not moments or (position and self._job.aims_at_original):
                    if self._job.config.experts_of(self._task.layer) is None:
                        self._kept.clear()
                    moments = self._kept | self._moments(batch, drifting=sites)
                with self._job.timed("rounding"):
                    for turn in in_turns(self._job.ranks, batch):
                        error, stages = self._round_turn(turn, moments, integers)
                        errors, kept = errors + error, kept | stages
            self._tell(kind, sites, errors, kept)
        return self.block, integers

    def _round_turn(
        self, turn: Sequence[Input], moments: Mapping[str, Rows], integers: Integers
    ) -> tuple[SiteError, set[str]]:
        """Round the linears of some inputs; their error, and the stages that were kept.

        Nothing but the integers outlives it: codes as floats are as large as the weights.
        """
        errors, kept = SiteError(), set[str]()
        works = [partial(self._rounded, reader, moments[reader.name]) for reader in turn]
        for reader, rounded in zip(turn, shared_out(self._job.ranks, works), strict=True):
            self._take(reader, rounded.linears, integers)
            self._sketches.append(rounded.sketch)
            errors = errors + rounded.error
            kept |= set(rounded.linears.kept)
        return errors, kept

    def _rounded(self, reader: Input, rows: Rows) -> _RoundedInput:
        """The input's linears as one, which takes the same steps with fewer and larger products."""
        weights = [self.block[f"{linear}.weight"] for linear in reader.linears]
        stacked = torch.cat([weight.float() for weight in weights])
        outputs, seed = self._outputs(reader), self._task.layer
        rounded = round_linear(stacked, rows, outputs=outputs, seed=seed)
        errors, sketches = [], []
        parts = stacked.split([p.stop - p.start for p in row_parts(*stacked.shape)])
        for part, piece in zip(parts, rounded.split(list(map(len, parts))), strict=True):
            sketch = Sketch.of(part, piece.grid, rows)
            errors.append(sketch.scaled.with_noise(piece.weight().sub_(part), rows))
            sketches.append(sketch)
        return _RoundedInput(
            linears=rounded, error=reduce(add, errors), sketch=reduce(add, sketches)
        )

    def _take(self, reader: Input, rounded: RoundedLinear, integers: Integers) -> None:
        """Put what the input's linears have become into the block."""
        weights = {f"{linear}.weight": self.block[f"{linear}.weight"] for linear in reader.linears}
        parts = rounded.split([len(weight) for weight in weights.values()])
        for name, part in zip(weights, parts, strict=True):
            integers[name] = to_quantized_weight(part.codes, part.grid)
            if self._job.tunes:
                self._task.offsets[name] = rounding_offsets(weights[name], part.codes, part.grid)
            self.block = {**self.block, name: part.weight().to(self._job.compute_dtype)}

    def _outputs(self, reader: Input) -> list[Tensor]:
        """Of all the reader's linears, as folded; none where an expert saw no token."""
        blocks: list[Tensor] = []
        for linear in reader.linears:
            of_linear = self._task.outputs.get(linear, ())
            if not of_linear:
                return []
            size = sum(map(len, of_linear))
            divisor = self._divisors.get(linear, torch.ones(size)).to(self._job.device)
            for moments, part in zip(
                of_linear, divisor.split([len(m) for m in of_linear]), strict=True
            ):
                blocks.append(moments.to(self._job.device) * torch.outer(part, part))
        return blocks

    def _tell(self, kind: str, sites: Sequence[Site], error: SiteError, kept: set[str]) -> None:
        nearest = SiteError()
        for site in sites:
            for reader in site.inputs:
                nearest = nearest + self._nearest[reader.name]
        scales = dict.fromkeys(self._scales[site.name] for site in sites)
        sketch, self._sketches = reduce(add, self._sketches), []
        self._job.on_site(
            SiteResult(
                layer=self._task.layer,
                site=kind,
                scale=next(iter(scales)) if len(scales) == 1 else f"{len(scales)} different ones",
                kept=tuple(sorted(kept)),
                error_nearest=nearest.relative,
                error=error.relative,
                picture=sketch.picture(self._channels[sites[0].name]),
                starved=self._task.starved if kind == "gate_up" else (),
            )
        )

    def _scale(self, site: Site, rows: Rows) -> tuple[Tensor, str]:
        takers = {linear for other in self._task.sites for linear in other.linears}
        return site_scale(self._job, site, self.block, rows, takers)

    def _moments(self, inputs: Sequence[Input], *, drifting: Sequence[Site]) -> dict[str, Rows]:
        return half_moments(
            self._job,
            self._task,
            self._hidden,
            inputs,
            block=self.block,
            unrounded=self._unrounded,
            drifting=drifting,
        )


def _pooled(site: Site) -> Input:
    """The input by which the site's scale is chosen; with experts, that of all tokens."""
    return Input(name=site.name, linears=site.linears)


def _store_feeder(job: BlockJob, site: Site, block: Block) -> Block:
    """Round what the fold changed and will be stored unquantized, so that searches see it."""
    feeder = f"{site.feeder}.weight" if site.feeder_is_norm else f"{site.feeder}.bias"
    changed = [feeder, *(f"{linear}.weight" for linear in site.compensated)]
    return block | {n: block[n].to(job.stored_dtype).float() for n in changed if n in block}
