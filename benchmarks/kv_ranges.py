"""Ways to choose scale and minimum of 4-bit keys and values, compared: KL in nats per token.

    python benchmarks/kv_ranges.py MODEL --text FILE --json benchmarks/results/kv_ranges.json

Keys lie in the frame that the check at start-up chooses. Each way is measured on keys alone and on
values alone, the other ones being as they are; "exact parameters" and "rotated" values ask whether
a format with them would be worth it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from machine import save_results
from texts import text_ids
from torch import Tensor

from awqkit.checkpoint import DecoderConfig
from awqkit_runtime.cache.key_frame import KeyFrame
from awqkit_runtime.cache.page_codec import dequantize_vectors, quantize_vectors
from awqkit_runtime.cache.page_format import PageFormat
from awqkit_runtime.engine.key_choice import choose_key_frame
from awqkit_runtime.kernels.hadamard import hadamard
from awqkit_runtime.layers.attention import DenseAttention
from awqkit_runtime.models.decoder import Decoder
from awqkit_runtime.models.loader import load_decoder

TOP = 15
#: Vectors [..., head_dim] → what 4 bits give back.
Way = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Line:
    scale: Tensor
    minimum: Tensor

    def stored(self) -> Line:
        """As FP16 holds it."""
        return Line(scale=self.scale.half().float(), minimum=self.minimum.half().float())

    def codes(self, x: Tensor) -> Tensor:
        return ((x - self.minimum) / self.scale).round().clamp(0, TOP)

    def read(self, codes: Tensor) -> Tensor:
        return codes * self.scale + self.minimum


def span(x: Tensor, shrink: float) -> Line:
    """From minimum to maximum, less a share of the range at both ends."""
    low, high = torch.aminmax(x, dim=-1, keepdim=True)
    cut = shrink * (high - low)
    return Line(scale=((high - low - 2 * cut) / TOP).clamp_min(1e-7), minimum=low + cut)


def fit(x: Tensor, codes: Tensor) -> Line:
    """Least squares."""
    offsets = codes - codes.mean(-1, keepdim=True)
    spread = offsets.square().sum(-1, keepdim=True).clamp_min(1e-9)
    scale = ((offsets * x).sum(-1, keepdim=True) / spread).clamp_min(1e-7)
    return Line(
        scale=scale, minimum=x.mean(-1, keepdim=True) - scale * codes.mean(-1, keepdim=True)
    )


def spanning(shrink: float) -> Way:
    def way(x: Tensor) -> Tensor:
        line = span(x, shrink).stored()
        return line.read(line.codes(x))

    return way


def fitted(shrink: float, turns: int) -> Way:
    def way(x: Tensor) -> Tensor:
        line = span(x, shrink).stored()
        for _ in range(turns):
            line = fit(x, line.codes(x)).stored()
        return line.read(line.codes(x))

    return way


def searched(shrinks: tuple[float, ...]) -> Way:
    """The shrinkage, of those given, with the smallest squared error."""

    def way(x: Tensor) -> Tensor:
        tried = torch.stack([spanning(shrink)(x) for shrink in shrinks])
        best = (tried - x).square().sum(-1, keepdim=True).argmin(0, keepdim=True)
        return tried.gather(0, best.expand(1, *x.shape))[0]

    return way


def exact_parameters(x: Tensor) -> Tensor:
    line = span(x, 0.0)
    return line.read(line.codes(x))


def as_the_cache_does(x: Tensor) -> Tensor:
    codes, params = quantize_vectors(x, 4)
    return dequantize_vectors(codes.float(), params)


WAYS: dict[str, Way] = {
    "minimum to maximum": spanning(0.0),
    "exact parameters": exact_parameters,
    "2 % shorter at both ends": spanning(0.02),
    "4 % shorter at both ends": spanning(0.04),
    "the best of 0, 3, 6, 9 % shorter": searched((0.0, 0.03, 0.06, 0.09)),
    "fitted once, as the cache does": as_the_cache_does,
    "fitted twice": fitted(0.0, 2),
    "2 % shorter, fitted once": fitted(0.02, 1),
    "2 % shorter, fitted three times": fitted(0.02, 3),
    "rotated, minimum to maximum": lambda x: hadamard(spanning(0.0)(hadamard(x))),
}


class Stored(DenseAttention):
    """One text. key, value: what comes back of them."""

    def __init__(
        self, config: DecoderConfig, length: int, *, frame: KeyFrame, key: Way, value: Way
    ) -> None:
        super().__init__(config, batch=1, length=length, device=torch.device("cpu"))
        self._frame, self._key, self._value = frame, key, value

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k = self._key(self._frame.keys(layer, k).float())
        return super().attend(layer, self._frame.queries(layer, q), k, self._value(v.float()))


def as_it_is(x: Tensor) -> Tensor:
    return x


def log_probabilities(
    decoder: Decoder, ids: Tensor, seqlen: int, *, frame: KeyFrame, key: Way, value: Way
) -> Tensor:
    """float32 [tokens, vocab]"""
    parts = []
    for chunk in ids.split(seqlen):
        state = Stored(decoder.config, len(chunk), frame=frame, key=key, value=value)
        hidden = decoder.hidden(chunk, torch.arange(len(chunk)), state)
        parts.append(decoder.logits(hidden).log_softmax(-1))
    return torch.cat(parts)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--seqlen", type=int, default=1024)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    decoder = load_decoder(options.model, device="cpu")
    seqlen = min(options.seqlen, decoder.session_len)
    ids = text_ids(options.model, options.text, tokens=options.tokens)
    page_format = PageFormat.for_policy(decoder.config, 4, decoder.dtype)
    frame = choose_key_frame(decoder, page_format).best.frame

    def logs(key: Way, value: Way) -> Tensor:
        return log_probabilities(decoder, ids, seqlen, frame=frame, key=key, value=value)

    reference = logs(as_it_is, as_it_is)
    rows = []
    for name, way in WAYS.items():
        keys, values = (
            float((reference.exp() * (reference - found)).sum(-1).mean())
            for found in (logs(way, as_it_is), logs(as_it_is, way))
        )
        rows.append({"way": name, "keys": keys, "values": values})
        print(f"{name:34} keys {keys:.3e}   values {values:.3e}", flush=True)
    if options.json:
        save_results(
            options.json,
            model=options.model.name,
            text=options.text.name,
            tokens=len(ids),
            seqlen=seqlen,
            rows=rows,
        )


if __name__ == "__main__":
    main()
