"""The pages themselves: one allocation each for the keys and the values of every layer."""

from __future__ import annotations

import torch
from torch import Tensor

from awqkit_runtime.cache.key_frame import PLAIN_FRAME, KeyFrame
from awqkit_runtime.cache.page_access import (
    VectorRows,
    read_vectors,
    vector_rows,
    write_vectors,
)
from awqkit_runtime.cache.page_format import (
    PAGE_TOKENS,
    PARAM_DTYPE,
    PARAMS_PER_VECTOR,
    LayerPages,
    PageFormat,
    VectorFormat,
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
        keys, values = (self._vectors(vector) for vector in (format.key, format.value))
        params = self._params() if format.quantized else None
        self._layers = tuple(
            LayerPages(
                format=format,
                keys=keys[layer],
                values=values[layer],
                params=None if params is None else params[layer],
            )
            for layer in range(format.num_layers)
        )

    @property
    def nbytes(self) -> int:
        return self.num_pages * self.format.bytes_per_page

    def layer(self, layer: int) -> LayerPages:
        """Every page of a layer, as they are stored."""
        return self._layers[layer]

    def append(self, layer: int, k: Tensor, v: Tensor, slots: Tensor) -> None:
        """Store k and v [T, kv_heads, head_dim] (keys after rotary) at slots, int64 [T]."""
        write_vectors(self._layers[layer], self.key_frame.keys(layer, k), v, slots)

    def queries(self, layer: int, q: Tensor) -> Tensor:
        """q [T, heads, head_dim] after rotary → as queries of the keys that gather() gives."""
        return self.key_frame.queries(layer, q)

    def gather(self, layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        """k and v [N, kv_heads, head_dim] at slots, int64 [N], as the pages hold them.

        Keys are in the frame. float32 from quantized pages and on a CPU, else the model's dtype.
        The vectors of one head lie in one piece.
        """
        return self.gather_rows(layer, self.rows(slots))

    def rows(self, slots: Tensor) -> VectorRows:
        """Where every layer has the tokens at slots, int64 [N]."""
        return vector_rows(self.format, slots)

    def gather_rows(self, layer: int, rows: VectorRows) -> tuple[Tensor, Tensor]:
        """As gather(), where rows() has been asked already."""
        return read_vectors(self._layers[layer], rows)

    def _vectors(self, vector: VectorFormat) -> Tensor:
        form = self.format
        elements, dtype = (
            (vector.element_bytes, torch.uint8)
            if vector.quantized
            else (vector.head_dim, vector.dtype)
        )
        shape = (form.num_layers, self.num_pages, form.num_kv_heads, PAGE_TOKENS, elements)
        return torch.empty(shape, dtype=dtype, device=self.device)

    def _params(self) -> Tensor:
        form = self.format
        heads = 2 * form.num_kv_heads
        shape = (form.num_layers, self.num_pages, heads, PAGE_TOKENS, PARAMS_PER_VECTOR)
        return torch.empty(shape, dtype=PARAM_DTYPE, device=self.device)
