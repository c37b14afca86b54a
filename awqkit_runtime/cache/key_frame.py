"""Another frame for keys and queries, in which keys of few bits lose less.

    k' = H((k − m) / c)        q' = H(q · c)        q'·k' = q·k − q·m

m is a mean key and c a factor for each channel, both fixed for a layer and KV head, and H is an
orthogonal rotation, all behind the rotary embedding. What q·m takes from a query's scores is the
same for all its keys, and softmax does not see it, so nothing is added back. Soft caps do see it:
models that have them get no mean. The rotation: Ashkboos et al., 2024, "QuaRot", section 4. The
factors: Lin et al., 2024, "QServe", section 4.2, but c² is the ratio of a channel's spreads in keys
and in queries, which makes |q · c| · |k / c| smallest.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from awqkit_runtime.cache.page_format import PageFormat
from awqkit_runtime.kernels.hadamard import hadamard
from awqkit_runtime.kernels.rotary_append import LayerFrame

#: Of m and of c, float32.
_ELEMENT_BYTES = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class KeyFrame:
    """How keys are laid before they are stored, and queries with them; by default as they are."""

    #: m, float32 [layers, kv_heads, head_dim]; None: nothing is subtracted.
    mean: Tensor | None = None
    #: c, as m; None: channels stay as loud as they are.
    channel_scale: Tensor | None = None
    rotated: bool = False

    def layer(self, layer: int) -> LayerFrame:
        """A layer's part, as kernels take it."""
        return LayerFrame(
            mean=None if self.mean is None else self.mean[layer],
            channel_scale=None if self.channel_scale is None else self.channel_scale[layer],
            rotated=self.rotated,
        )

    def keys(self, layer: int, k: Tensor) -> Tensor:
        """k [T, kv_heads, head_dim] after rotary → what pages store; float32 where it changes."""
        if self.mean is not None:
            k = k.float() - self.mean[layer]
        if self.channel_scale is not None:
            k = k.float() / self.channel_scale[layer]
        return hadamard(k) if self.rotated else k

    def queries(self, layer: int, q: Tensor) -> Tensor:
        """q [T, heads, head_dim] after rotary → the queries of stored keys, in q's dtype."""
        if self.channel_scale is None and not self.rotated:
            return q
        wide = q.float()
        if self.channel_scale is not None:
            scale = self.channel_scale[layer]
            grouped = wide.unflatten(-2, (scale.shape[0], -1))
            wide = (grouped * scale.unsqueeze(-2)).flatten(-3, -2)
        return (hadamard(wide) if self.rotated else wide).to(q.dtype)


#: Keys as they are.
PLAIN_FRAME = KeyFrame()


def frame_bytes(format: PageFormat) -> int:
    """Bytes that m and c take at most: under an eighth of a page of 4-bit keys and values."""
    return 2 * _ELEMENT_BYTES * format.num_layers * format.num_kv_heads * format.head_dim
