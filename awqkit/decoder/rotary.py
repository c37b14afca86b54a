"""Rotary position embedding (Su et al., 2021) and the ways to stretch it over longer contexts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from awqkit.checkpoint import DecoderConfig, RopeConfig


class RotaryTables:
    """cos and sin of the positions 0 … length − 1, as each layer of a decoder rotates them."""

    def __init__(self, config: DecoderConfig, length: int, device: torch.device | str) -> None:
        self._config = config
        self._tables: dict[RopeConfig, tuple[Tensor, Tensor]] = {}
        for rope in layer_ropes(config):
            cos, sin = rotary_tables(config, length, rope=rope)
            self._tables[rope] = (cos.to(device), sin.to(device))

    def of(self, layer: int) -> tuple[Tensor, Tensor]:
        """float32 [length, rotary_dim]."""
        return self._tables[self._config.rope_of(layer)]


def layer_ropes(config: DecoderConfig) -> tuple[RopeConfig, ...]:
    """The different rotary embeddings that the layers use."""
    return tuple({config.rope_of(layer): None for layer in range(config.num_layers)})


def rotary_tables(
    config: DecoderConfig,
    length: int,
    *,
    session_len: int | None = None,
    rope: RopeConfig | None = None,
) -> tuple[Tensor, Tensor]:
    """cos and sin of every position's angles: float32 [length, rotary_dim], halves repeated.

    session_len: of rotary_frequencies; None means `length`, or the model's maximum where the
    frequencies are dynamic.  rope: None means config.rope.
    """
    rope = rope or config.rope
    if session_len is None and rope.kind == "longrope":
        session_len = length
    frequencies, amplitude = rotary_frequencies(config, session_len=session_len, rope=rope)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos() * amplitude, angles.sin() * amplitude


def rotary_frequencies(
    config: DecoderConfig, *, session_len: int | None = None, rope: RopeConfig | None = None
) -> tuple[Tensor, float]:
    """Angle per position for each rotating pair: float32 [rotary_dim / 2]; and the amplitude.

    What depends on the length of a text (a dynamic base, the choice between longrope's factors) is
    fixed once for sessions of session_len tokens, so that keys which lie in a cache stay valid
    while the session grows; None means the model's own maximum.  rope: None means config.rope.
    """
    rope = rope or config.rope
    rotary_dim = int(config.head_dim * rope.partial_rotary_factor)
    plain = _plain(rope.theta, rotary_dim)
    match rope.kind:
        case "dynamic":
            return _plain(_dynamic_base(config, rope, rotary_dim, session_len), rotary_dim), 1.0
        case "linear":
            return plain / rope.factor, 1.0
        case "llama3":
            return _llama3(plain, rope, _original_length(config, rope)), 1.0
        case "yarn":
            frequencies = _yarn(rope, rotary_dim, _original_length(config, rope))
            return frequencies, _yarn_amplitude(rope)
        case "longrope":
            return plain / _longrope_factors(config, rope, session_len), _longrope_amplitude(
                rope, _original_length(config, rope)
            )
    return plain, 1.0


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


def _original_length(config: DecoderConfig, rope: RopeConfig) -> int:
    return rope.original_max_position_embeddings or config.max_position_embeddings


def _dynamic_base(
    config: DecoderConfig, rope: RopeConfig, rotary_dim: int, session_len: int | None
) -> float:
    limit = config.max_position_embeddings
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


def _longrope_factors(config: DecoderConfig, rope: RopeConfig, session_len: int | None) -> Tensor:
    """Divisors of the frequencies (Ding et al., 2024, "LongRoPE"): float32 [rotary_dim / 2]."""
    is_long = (session_len or config.max_position_embeddings) > _original_length(config, rope)
    return torch.tensor(rope.long_factors if is_long else rope.short_factors)


def _longrope_amplitude(rope: RopeConfig, original_length: int) -> float:
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.factor <= 1:
        return 1.0
    return math.sqrt(1 + math.log(rope.factor) / math.log(original_length))
