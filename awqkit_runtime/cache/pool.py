"""The pages themselves: one allocation that holds keys and values of every layer."""

from __future__ import annotations

import torch
from torch import Tensor

from awqkit_runtime.cache.key_frame import PLAIN_FRAME, KeyFrame
from awqkit_runtime.cache.page_codec import (
    dequantize_vectors,
    pack_codes,
    quantize_vectors,
    unpack_codes,
)
from awqkit_runtime.cache.page_format import (
    PAGE_TOKENS,
    PARAM_DTYPE,
    PARAMS_PER_VECTOR,
    PageFormat,
)


class PagePool:
    """num_pages pages of all layers. A slot is page · PAGE_TOKENS + offset of the token in it.

    The pool knows nothing of sequences: who owns a page is the allocator's business. Pages are not
    cleared, so that on a CPU only those that were written to take real memory.
    """

    def __init__(
        self,
        format: PageFormat,
        num_pages: int,
        device: torch.device | str,
        *,
        key_frame: KeyFrame = PLAIN_FRAME,
    ) -> None:
        """key_frame: how the keys of every page are laid."""
        self.format = format
        self.key_frame = key_frame
        self.num_pages = num_pages
        self.device = torch.device(device)
        slots = num_pages * PAGE_TOKENS
        self._pages: _DensePages | _QuantizedPages = (
            _QuantizedPages(format, slots, self.device)
            if format.quantized
            else _DensePages(format, slots, self.device)
        )

    @property
    def nbytes(self) -> int:
        return self.num_pages * self.format.bytes_per_page

    def append(self, layer: int, k: Tensor, v: Tensor, slots: Tensor) -> None:
        """Store k and v [T, kv_heads, head_dim] (keys after rotary) at slots, int64 [T]."""
        k = self.key_frame.keys(layer, k)
        self._pages.write(layer, torch.cat((k, v), dim=1), slots)

    def queries(self, layer: int, q: Tensor) -> Tensor:
        """q [T, heads, head_dim] after rotary → as queries of the keys that gather() gives."""
        return self.key_frame.queries(layer, q)

    def gather(self, layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        """k and v [N, kv_heads, head_dim] at slots, int64 [N], as the pages hold them.

        Keys are in the frame. float32 from quantized pages, the model's dtype from dense ones.
        """
        k, v = self._pages.read(layer, slots).chunk(2, dim=1)
        return k, v


class _DensePages:
    """Rows of the model's dtype: [layer, slot, key heads then value heads, head_dim]."""

    def __init__(self, format: PageFormat, slots: int, device: torch.device) -> None:
        shape = (format.num_layers, slots, 2 * format.num_kv_heads, format.head_dim)
        self._layers = torch.empty(shape, dtype=format.dtype, device=device).unbind(0)

    def write(self, layer: int, vectors: Tensor, slots: Tensor) -> None:
        rows = self._layers[layer]
        rows.index_copy_(0, slots, vectors.to(rows.dtype))

    def read(self, layer: int, slots: Tensor) -> Tensor:
        return self._layers[layer].index_select(0, slots)


class _QuantizedPages:
    """Rows of codes [layer, slot, bytes] and their parameters [layer, slot, heads, 2]."""

    def __init__(self, format: PageFormat, slots: int, device: torch.device) -> None:
        self._head_dim = format.head_dim
        heads = format.num_kv_heads
        # Keys and values of equal width are coded as one run of heads: (heads, bits) each.
        self._runs = (
            [(2 * heads, format.k_bits)]
            if format.k_bits == format.v_bits
            else [(heads, format.k_bits), (heads, format.v_bits)]
        )
        row_bytes = heads * (format.key.element_bytes + format.value.element_bytes)
        shape = (format.num_layers, slots, row_bytes)
        self._codes = torch.empty(shape, dtype=torch.uint8, device=device).unbind(0)
        param_shape = (format.num_layers, slots, 2 * heads, PARAMS_PER_VECTOR)
        self._params = torch.empty(param_shape, dtype=PARAM_DTYPE, device=device).unbind(0)

    def write(self, layer: int, vectors: Tensor, slots: Tensor) -> None:
        runs = vectors.split([heads for heads, _ in self._runs], dim=1)
        packed, params = [], []
        for run, (_, bits) in zip(runs, self._runs, strict=True):
            codes, run_params = quantize_vectors(run, bits)
            packed.append(pack_codes(codes, bits).flatten(1))
            params.append(run_params)
        self._codes[layer].index_copy_(0, slots, _joined(packed))
        self._params[layer].index_copy_(0, slots, _joined(params))

    def read(self, layer: int, slots: Tensor) -> Tensor:
        packed = self._codes[layer].index_select(0, slots)
        params = self._params[layer].index_select(0, slots)
        shape = (slots.shape[0], params.shape[1], self._head_dim)
        vectors = torch.empty(shape, device=packed.device)
        widths = [heads * self._head_dim * bits // 8 for heads, bits in self._runs]
        outs = vectors.split([heads for heads, _ in self._runs], dim=1)
        for run, out, (heads, bits) in zip(
            packed.split(widths, dim=1), outs, self._runs, strict=True
        ):
            unpack_codes(run.unflatten(1, (heads, -1)), bits, out)
        return dequantize_vectors(vectors, params)


def _joined(parts: list[Tensor]) -> Tensor:
    """Along dimension 1; nothing is copied where there is one part."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
