"""Rotary angles of arbitrary positions, once a step for all layers that rotate alike."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from awqkit.checkpoint import DecoderConfig
from awqkit.decoder.rotary import layer_ropes, rotary_frequencies


class RotaryAngles(nn.Module):
    """positions [T] → each layer's cos and sin, as awqkit.decoder.apply_rotary takes them.

    session_len fixes what depends on the length of a text, so that cached keys stay valid while a
    session grows.
    """

    def __init__(self, config: DecoderConfig, *, session_len: int, device: torch.device) -> None:
        super().__init__()
        self.session_len = session_len
        ropes = layer_ropes(config)
        self._kinds = [ropes.index(config.rope_of(layer)) for layer in range(config.num_layers)]
        self._amplitudes = []
        for kind, rope in enumerate(ropes):
            frequencies, amplitude = rotary_frequencies(config, session_len=session_len, rope=rope)
            # Twice, since both halves of a head turn by the same angles.
            both = torch.cat((frequencies, frequencies)).to(device)
            self.register_buffer(f"frequencies_{kind}", both)
            self._amplitudes.append(amplitude)

    def forward(self, positions: Tensor) -> list[tuple[Tensor, Tensor]]:
        """cos and sin of every layer, float32 [T, rotary_dim]; layers that rotate alike share."""
        tables = [self._tables(positions, kind) for kind in range(len(self._amplitudes))]
        return [tables[kind] for kind in self._kinds]

    def _tables(self, positions: Tensor, kind: int) -> tuple[Tensor, Tensor]:
        frequencies, amplitude = self.get_buffer(f"frequencies_{kind}"), self._amplitudes[kind]
        angles = torch.outer(positions.to(frequencies.dtype), frequencies)
        cos, sin = angles.cos(), angles.sin()
        return (cos, sin) if amplitude == 1 else (cos * amplitude, sin * amplitude)
