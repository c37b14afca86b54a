"""One block from float weights to integers: capture, scale, fold, prove, clip, round, advance."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from awqkit.calibration.capture import Half, advance, capture_moments
from awqkit.checkpoint import DecoderConfig, QuantizedWeight
from awqkit.checkpoint.layout import is_quantizable
from awqkit.decoder import Observer, RotaryTables, attention_half, mlp_half
from awqkit.errors import QuantizationError
from awqkit.search.affine import min_max_grid, round_to_nearest, to_quantized_weight
from awqkit.search.fold import fold, realised_norm_scale
from awqkit.search.moments import divided_by, output_error
from awqkit.search.site import Rows, choose_scale, round_linear
from awqkit.search.sites import ATTENTION_SITES, MLP_SITES, SITES, Site, tie_channels

#: Share of the calibration rows that judge the search and are hidden from it.
JUDGING_SHARE = 8
#: Relative error that folding may add to a half's output, by compute dtype.
FOLD_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}


@dataclass(frozen=True, kw_only=True)
class BlockJob:
    """What stays the same from block to block."""

    config: DecoderConfig
    rotary: RotaryTables
    compute_dtype: torch.dtype
    stored_dtype: torch.dtype
    search_scale: bool
    second_order: bool
    batch_size: int
    on_site: Callable[[SiteResult], None]


@dataclass(frozen=True, kw_only=True)
class SiteResult:
    """Output errors are relative to the output's own energy, on the judging rows."""

    layer: int
    site: str
    scale: str
    kept: tuple[str, ...]
    error_nearest: float
    error: float


@dataclass(frozen=True, kw_only=True)
class QuantizedBlock:
    """stored: what the checkpoint gets; running: the same function as dense float tensors."""

    stored: dict[str, Tensor | QuantizedWeight]
    running: dict[str, Tensor]


Block = dict[str, Tensor]


def quantizable_sites(shapes: Mapping[str, tuple[int, ...]]) -> tuple[Site, ...]:
    """Sites whose linears all divide into groups; engines fuse them, so it is all or none.

    shapes: of a block's weights, (out, in), by their names relative to the layer.
    """
    return tuple(
        site
        for site in SITES
        if all(is_quantizable(*shapes[f"{linear}.weight"]) for linear in site.linears)
    )


def quantize_block(
    job: BlockJob, layer: int, weights: Mapping[str, Tensor], hidden: Tensor
) -> QuantizedBlock:
    """Quantize one block and advance hidden [rows, T, hidden] through the result, in place."""
    block = {name: tensor.float() for name, tensor in weights.items()}
    sites = quantizable_sites({name: tuple(tensor.shape) for name, tensor in block.items()})
    stored: dict[str, Tensor | QuantizedWeight] = {}
    for half_sites, run in ((ATTENTION_SITES, _run_attention), (MLP_SITES, _run_mlp)):
        chosen = tuple(site for site in half_sites if site in sites)
        block, integers = _quantize_half(job, layer, run, chosen, block, hidden)
        stored |= integers
        advance(run(job, layer, block), hidden, batch_size=job.batch_size)
    stored |= {
        name: tensor.to(job.stored_dtype) for name, tensor in block.items() if name not in stored
    }
    return QuantizedBlock(stored=stored, running=block)


def nearest_block(weights: Mapping[str, Tensor]) -> Block:
    """The block after plain round-to-nearest: the baseline that everything is measured by."""
    block = {name: tensor.float() for name, tensor in weights.items()}
    for site in quantizable_sites({name: tuple(tensor.shape) for name, tensor in block.items()}):
        for linear in site.linears:
            weight = block[f"{linear}.weight"]
            block[f"{linear}.weight"] = round_to_nearest(weight, min_max_grid(weight))
    return block


def _quantize_half(
    job: BlockJob,
    layer: int,
    run: HalfOfBlock,
    sites: tuple[Site, ...],
    block: Block,
    hidden: Tensor,
) -> tuple[Block, dict[str, Tensor | QuantizedWeight]]:
    original, moments = block, _capture(job, run(job, layer, block), hidden, sites)
    nearest = {site.name: _nearest_error(original, site, moments[site.name]) for site in sites}
    scales: dict[str, str] = {}
    for site, scale, description in _choose_scales(job, sites, block, moments):
        block = fold(block, site, job.config, scale)
        rows = moments[site.name]
        moments[site.name] = Rows(divided_by(rows.search, scale), divided_by(rows.judge, scale))
        scales[site.name] = description
    _prove_fold(run(job, layer, original), run(job, layer, block), hidden[:1], layer)
    for site in sites:
        block = _store_feeder(job, site, block)

    integers: dict[str, Tensor | QuantizedWeight] = {}
    for position, site in enumerate(sites):
        if position and job.second_order:
            moments |= _capture(job, run(job, layer, block), hidden, (site,))
        before, kept = block, set[str]()
        for linear in site.linears:
            name = f"{linear}.weight"
            rounded = round_linear(block[name], moments[site.name], second_order=job.second_order)
            integers[name] = to_quantized_weight(rounded.codes, rounded.grid)
            block = {**block, name: rounded.weight()}
            kept |= set(rounded.kept)
        job.on_site(
            SiteResult(
                layer=layer,
                site=site.name,
                scale=scales[site.name],
                kept=tuple(sorted(kept)),
                error_nearest=nearest[site.name],
                error=_error(before, block, site, moments[site.name]),
            )
        )
    return block, integers


def _choose_scales(
    job: BlockJob, sites: tuple[Site, ...], block: Block, moments: Mapping[str, Rows]
) -> Iterator[tuple[Site, Tensor, str]]:
    """Each site's scale, found on the unfolded block, and in words."""
    takers = {linear for site in sites for linear in site.linears}
    for site in sites:
        rows = moments[site.name]
        weights = [block[f"{linear}.weight"] for linear in site.linears]
        feeder = block[f"{site.feeder}.weight"]

        realise = partial(_realised, job, site, feeder)
        can_fold = site.feeder_is_norm or site.feeder in takers
        if not (job.search_scale and can_fold):
            yield site, realise(torch.ones_like(rows.search.magnitude)), "identity"
            continue
        choice = choose_scale(
            weights,
            rows,
            tie=partial(tie_channels, site, job.config),
            realise=realise,
        )
        yield site, choice.scale, choice.description


def _realised(job: BlockJob, site: Site, feeder: Tensor, scale: Tensor) -> Tensor:
    """The scale [in] that counts once the feeder is stored; a linear is stored by its integers."""
    if not site.feeder_is_norm:
        return scale
    offset = job.config.norm_unit_offset
    return realised_norm_scale(feeder, scale, job.stored_dtype, unit_offset=offset)


def _store_feeder(job: BlockJob, site: Site, block: Block) -> Block:
    """Round what the fold changed and will be stored unquantized, so that searches see it."""
    name = f"{site.feeder}.weight" if site.feeder_is_norm else f"{site.feeder}.bias"
    if name not in block:
        return block
    return {**block, name: block[name].to(job.stored_dtype).float()}


def _capture(job: BlockJob, half: Half, hidden: Tensor, sites: tuple[Site, ...]) -> dict[str, Rows]:
    names = [site.name for site in sites]
    judges = max(1, hidden.shape[0] // JUDGING_SHARE)
    judged, searched = hidden[:judges], hidden[judges:] if hidden.shape[0] > 1 else hidden
    judge = capture_moments(half, judged, names, batch_size=job.batch_size)
    search = capture_moments(half, searched, names, batch_size=job.batch_size)
    return {name: Rows(search[name], judge[name]) for name in names}


def _prove_fold(original: Half, folded: Half, hidden: Tensor, layer: int) -> None:
    """Refuse to quantize a block that folding has changed."""
    expected = (original(hidden, _ignore) - hidden).float()
    difference = (folded(hidden, _ignore) - hidden).float() - expected
    error = float(difference.norm() / expected.norm().clamp(min=1e-12))
    if not error <= FOLD_TOLERANCE[hidden.dtype]:
        raise QuantizationError(
            f"Layer {layer}: folding the scales changed the block's output by {error:.1e} "
            f"(relative), where {FOLD_TOLERANCE[hidden.dtype]:.0e} is rounding. The family's "
            "description does not fit these weights; nothing was written. "
            "--no-search-scale quantizes without folding."
        )


def _nearest_error(block: Block, site: Site, rows: Rows) -> float:
    rounded = dict(block)
    for linear in site.linears:
        weight = block[f"{linear}.weight"]
        rounded[f"{linear}.weight"] = round_to_nearest(weight, min_max_grid(weight))
    return _error(block, rounded, site, rows)


def _error(before: Block, after: Block, site: Site, rows: Rows) -> float:
    names = [f"{linear}.weight" for linear in site.linears]
    noise = sum(output_error(after[n] - before[n], rows.judge.gram) for n in names)
    energy = sum(output_error(before[n], rows.judge.gram) for n in names)
    return float(noise / energy) if float(energy) > 0 else 0.0


HalfOfBlock = Callable[[BlockJob, int, Block], Half]


def _run_attention(job: BlockJob, layer: int, block: Block) -> Half:
    weights = {name: tensor.to(job.compute_dtype) for name, tensor in block.items()}

    def half(x: Tensor, observe: Observer) -> Tensor:
        rotary = job.rotary.of(layer)
        return attention_half(weights, job.config, layer, x, rotary, observe=observe)

    return half


def _run_mlp(job: BlockJob, layer: int, block: Block) -> Half:
    weights = {name: tensor.to(job.compute_dtype) for name, tensor in block.items()}

    def half(x: Tensor, observe: Observer) -> Tensor:
        return mlp_half(weights, job.config, layer, x, observe=observe)

    return half


def _ignore(site: str, x: Tensor) -> None:
    """Observe nothing."""
