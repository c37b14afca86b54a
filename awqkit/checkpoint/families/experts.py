"""Mixtures of experts, as the families write them in config.json."""

from __future__ import annotations

from awqkit.checkpoint.decoder_config import ExpertsConfig
from awqkit.checkpoint.errors import CheckpointError
from awqkit.checkpoint.families.config_fields import ConfigFields


def read_experts(
    fields: ConfigFields,
    num_layers: int,
    *,
    count: int,
    norm_topk_prob: bool,
    intermediate_size: int,
    shared_intermediate_size: int | None = None,
) -> ExpertsConfig | None:
    """The experts in every `decoder_sparse_step`-th layer except `mlp_only_layers`.

    None where there are none. CheckpointError for values that make no sense.
    """
    step = fields.integer("decoder_sparse_step", 1)
    if step < 1:
        raise CheckpointError(f"config.json: decoder_sparse_step is {step}; it counts layers.")
    dense = fields.get("mlp_only_layers") or []
    if not isinstance(dense, list) or any(type(layer) is not int for layer in dense):
        raise CheckpointError(
            f"config.json: mlp_only_layers is {dense!r}; it must list numbers of layers."
        )
    layers = [layer for layer in range(num_layers) if (layer + 1) % step == 0]
    sparse = tuple(layer for layer in layers if layer not in dense)
    if not count or not sparse:
        return None
    return ExpertsConfig(
        num_experts=count,
        experts_per_token=fields.integer("num_experts_per_tok"),
        intermediate_size=intermediate_size,
        layers=sparse,
        norm_topk_prob=norm_topk_prob,
        shared_intermediate_size=shared_intermediate_size,
    )
