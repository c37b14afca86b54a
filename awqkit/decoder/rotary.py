"""Rotary position embedding (Su et al., 2021) and the ways to stretch it over longer contexts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from awqkit.checkpoint import DecoderConfig, RopeConfig


def rotary_tables(
    config: DecoderConfig, length: int, *, session_len: int | None = None
) -> tuple[Tensor, Tensor]:
    """cos and sin of every position's angles: float32 [length, rotary_dim], halves repeated.

    A dynamic base (NTK) is fixed once for sessions of session_len tokens, so that keys which
    lie in a cache stay valid while the session grows; None means the model's own maximum.
    """
    frequencies, amplitude = rotary_frequencies(config, session_len=session_len)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos() * amplitude, angles.sin() * amplitude


def rotary_frequencies(
    config: DecoderConfig, *, session_len: int | None = None
) -> tuple[Tensor, float]:
    """Angle per position for each rotating pair: float32 [rotary_dim / 2]; and the amplitude."""
    rope = config.rope
    rotary_dim = int(config.head_dim * rope.partial_rotary_factor)
    match rope.kind:
        case "dynamic":
            return _plain(_dynamic_base(config, rotary_dim, session_len), rotary_dim), 1.0
        case "linear":
            return _plain(rope.theta, rotary_dim) / rope.factor, 1.0
        case "llama3":
            return _llama3(_plain(rope.theta, rotary_dim), rope, _original_length(config)), 1.0
        case "yarn":
            frequencies = _yarn(rope, rotary_dim, _original_length(config))
            return frequencies, _yarn_amplitude(rope)
    return _plain(rope.theta, rotary_dim), 1.0


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + rotary_dim/2) of each head.

    x: [..., T, heads, head_dim]; cos, sin: [T, rotary_dim] at the tokens' positions.
    """
    rotary_dim = cos.shape[-1]
    cos, sin = cos.to(x.dtype).unsqueeze(-2), sin.to(x.dtype).unsqueeze(-2)
    rotating, still = x[..., :rotary_dim], x[..., rotary_dim:]
    first, second = rotating.chunk(2, dim=-1)
    rotated = rotating * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((rotated, still), dim=-1) if still.shape[-1] else rotated


def _plain(base: float, rotary_dim: int) -> Tensor:
    return 1.0 / base ** (torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim)


def _original_length(config: DecoderConfig) -> int:
    return config.rope.original_max_position_embeddings or config.max_position_embeddings


def _dynamic_base(config: DecoderConfig, rotary_dim: int, session_len: int | None) -> float:
    rope, limit = config.rope, config.max_position_embeddings
    length = max(session_len or limit, limit)
    stretch = rope.factor * length / limit - (rope.factor - 1.0)
    return rope.theta * stretch ** (rotary_dim / (rotary_dim - 2))


def _llama3(frequencies: Tensor, rope: RopeConfig, original_length: int) -> Tensor:
    """Slow down long wavelengths by factor, keep short ones, blend between (Llama 3.1)."""
    turns = original_length * frequencies / (2 * math.pi)
    span = rope.high_freq_factor - rope.low_freq_factor
    keep = ((turns - rope.low_freq_factor) / span).clamp(0.0, 1.0)
    return keep * frequencies + (1.0 - keep) * frequencies / rope.factor


def _yarn(rope: RopeConfig, rotary_dim: int, original_length: int) -> Tensor:
    """NTK-by-parts (Peng et al., 2023, "YaRN", equation 13), over dimensions."""

    def dimension_with(turns: float) -> float:
        ratio = original_length / (turns * 2 * math.pi)
        return rotary_dim * math.log(ratio) / (2 * math.log(rope.theta))

    low, high = dimension_with(rope.beta_fast), dimension_with(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    width = (high - low) or 0.001
    ramp = ((torch.arange(rotary_dim // 2, dtype=torch.float32) - low) / width).clamp(0.0, 1.0)
    frequencies = _plain(rope.theta, rotary_dim)
    return frequencies / rope.factor * ramp + frequencies * (1.0 - ramp)


def _yarn_amplitude(rope: RopeConfig) -> float:
    def amplitude(weight: float) -> float:
        return 1.0 if rope.factor <= 1 else 0.1 * weight * math.log(rope.factor) + 1.0

    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return amplitude(rope.mscale) / amplitude(rope.mscale_all_dim)
    return amplitude(1.0)
