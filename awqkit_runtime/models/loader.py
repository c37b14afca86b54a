"""Builds the decoder from a checkpoint, a block at a time."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from awqkit.checkpoint import Checkpoint, DecoderConfig, open_checkpoint
from awqkit.checkpoint.canonical import EMBEDDING, LM_HEAD
from awqkit.decoder import layer_ropes
from awqkit_runtime.config import DTYPES, named_dtype, parse_dtype, resolve_device
from awqkit_runtime.errors import ConfigError, UnsupportedModelError
from awqkit_runtime.kernels.cuda.availability import cuda_kernels_usable
from awqkit_runtime.kernels.programs import compile_fixed
from awqkit_runtime.layers.attention import DenseAttention
from awqkit_runtime.layers.placement import Fusions, Placement
from awqkit_runtime.layers.rotary import RotaryAngles
from awqkit_runtime.models.decoder import Decoder, DecoderLayer
from awqkit_runtime.models.reference_paths import say_what_runs_in_torch
from awqkit_runtime.models.weight_reader import outer_read_meanwhile, read_layers

_ALL_FUSIONS = Fusions()


def load_decoder(
    source: str | Path | Checkpoint,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    model_format: str = "auto",
    session_len: int | None = None,
    fusions: Fusions = _ALL_FUSIONS,
) -> Decoder:
    """The decoder of a folder, hub id or opened checkpoint, with at most one layer held twice.

    dtype: of weights that are not 4-bit and of unquantized cache pages; "auto" is the
    checkpoint's own. session_len: longest sequence that will run, None for the model's maximum;
    it fixes a dynamic rotary base. fusions: the CUDA kernels that may do several operations at
    once. Raises CheckpointError, UnsupportedModelError, ConfigError.
    """
    placed_on = resolve_device(device)
    parse_dtype(dtype)  # Before files are read.
    checkpoint = (
        source
        if isinstance(source, Checkpoint)
        else open_checkpoint(source, model_format=model_format)
    )
    config = checkpoint.config
    length = resolve_session_len(config, session_len)
    outer_dtype = resolve_dtype(config, dtype, placed_on)
    with outer_read_meanwhile(checkpoint, placed_on, outer_dtype) as outer:
        bits = head_bits(checkpoint)
        placement = ready_placement(config, placed_on, dtype, fusions, head_bits=bits)
        layers = [
            DecoderLayer(config, layer, block, placement)
            for layer, block in enumerate(read_layers(checkpoint, placed_on))
        ]
        return Decoder(config, layers, outer(), placement, session_len=length)


def ready_placement(
    config: DecoderConfig,
    device: torch.device,
    dtype: str | torch.dtype,
    fusions: Fusions = _ALL_FUSIONS,
    *,
    head_bits: int | None = None,
) -> Placement:
    """Where a model will run, its fixed kernels compiled; warns of what will run slowly.

    head_bits: of the head's codes; None where it is dense.
    """
    placement = Placement(
        device=device,
        dtype=resolve_dtype(config, dtype, device),
        has_cuda_kernels=device.type == "cuda" and cuda_kernels_usable(device),
        fusions=fusions,
    )
    say_what_runs_in_torch(config, placement, head_bits=head_bits)
    if placement.uses_cuda_kernels:
        compile_fixed(device, config.head_dim)
    return placement


def head_bits(checkpoint: Checkpoint) -> int | None:
    """Of the head's codes, which may be the embedding's; None where they are dense."""
    return checkpoint.bits(EMBEDDING if checkpoint.config.tie_word_embeddings else LM_HEAD)


def resolve_session_len(config: DecoderConfig, session_len: int | None) -> int:
    """session_len, or the model's maximum for None. ConfigError beyond what its rotary reaches."""
    if session_len is None:
        return config.max_position_embeddings
    limit = longest_session(config)
    if limit is not None and session_len > limit:
        raise ConfigError(
            f"session_len is {session_len}, but the model was made for at most {limit} tokens; "
            "ask for no more than that."
        )
    return session_len


def longest_session(config: DecoderConfig) -> int | None:
    """Positions that the rotary embedding reaches; None where it stretches to any length."""
    rope = config.rope
    if rope.kind == "dynamic":
        return None
    longest = config.max_position_embeddings
    if rope.kind == "linear":
        return int(longest * rope.factor)
    if rope.kind == "yarn":
        original = rope.original_max_position_embeddings or longest
        return max(longest, int(original * rope.factor))
    return longest


def resolve_dtype(
    config: DecoderConfig, dtype: str | torch.dtype, device: torch.device
) -> torch.dtype:
    """dtype itself, or for "auto" the one that the checkpoint names.

    On a GPU bfloat16 for float16, which most 4-bit checkpoints name: the kernels compute in it.
    ConfigError for another spelling, UnsupportedModelError where the checkpoint's is not known.
    """
    wanted = parse_dtype(dtype)
    if wanted != "auto":
        return wanted
    if config.dtype not in DTYPES:
        raise UnsupportedModelError(
            f"config.json says that the weights are {config.dtype}; known are "
            f"{', '.join(DTYPES)}. Choose one of them with dtype."
        )
    named = named_dtype(config.dtype)
    return torch.bfloat16 if device.type == "cuda" and named == torch.float16 else named


class LanguageModel(nn.Module):
    """The whole model without a cache: ids int64 [batch, seq] → logits float32 [batch, seq, vocab].

    All sequences of a batch count fully; there is no padding. ValueError for other ids.
    """

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    @torch.no_grad()
    def forward(self, ids: Tensor) -> Tensor:
        decoder = self.decoder
        _require_ids(ids, decoder.config.vocab_size)
        batch, length = ids.shape
        ids = ids.to(decoder.device)
        positions = torch.arange(length, device=decoder.device).repeat(batch)
        state = DenseAttention(decoder.config, batch=batch, length=length, device=decoder.device)
        hidden = decoder.hidden(
            ids.flatten(), positions, state, rotary=_angles_for(decoder, length)
        )
        return decoder.logits(hidden).view(batch, length, -1)


def _require_ids(ids: Tensor, vocab_size: int) -> None:
    """Checked here because an id outside the vocabulary ends a CUDA process for good."""
    if ids.dim() != 2 or ids.is_floating_point() or not ids.numel():
        raise ValueError(
            f"ids must be whole numbers [batch, seq], not {ids.dtype} {tuple(ids.shape)}"
        )
    low, high = (int(bound) for bound in torch.aminmax(ids))
    if low < 0 or high >= vocab_size:
        raise ValueError(f"ids must lie in 0…{vocab_size - 1}, not in {low}…{high}")


def _angles_for(decoder: Decoder, length: int) -> RotaryAngles | None:
    """Angles for texts of just this length, as no cached keys depend on them here.

    None for the decoder's own: a dynamic base moves only beyond the session length.
    """
    chooses_by_length = any(rope.kind == "longrope" for rope in layer_ropes(decoder.config))
    if length <= decoder.session_len and not chooses_by_length:
        return None
    return RotaryAngles(decoder.config, session_len=length, device=decoder.device)


def load(
    path: str | Path,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    *,
    model_format: str = "auto",
) -> LanguageModel:
    """A module from token ids to logits, for evaluation; see load_decoder for the arguments."""
    return LanguageModel(load_decoder(path, device=device, dtype=dtype, model_format=model_format))
