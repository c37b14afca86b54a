"""Rotary angles of arbitrary positions, once for all layers of a step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from awqkit.checkpoint import DecoderConfig
from awqkit.decoder.rotary import rotary_frequencies


class RotaryAngles(nn.Module):
    """positions [T] → cos and sin, float32 [T, rotary_dim], as awqkit.decoder.apply_rotary takes.

    session_len fixes a dynamic base, so that cached keys stay valid while a session grows.
    """

    frequencies: Tensor

    def __init__(self, config: DecoderConfig, *, session_len: int, device: torch.device) -> None:
        super().__init__()
        frequencies, self._amplitude = rotary_frequencies(config, session_len=session_len)
        self.register_buffer("frequencies", frequencies.to(device))

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        angles = torch.outer(positions.to(self.frequencies.dtype), self.frequencies)
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos() * self._amplitude, angles.sin() * self._amplitude
