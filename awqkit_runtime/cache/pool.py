"""The pages themselves: one allocation of keys and values, or two where their widths differ."""

from __future__ import annotations

import torch
from torch import Tensor

from awqkit_runtime.cache.key_frame import PLAIN_FRAME, KeyFrame
from awqkit_runtime.cache.page_access import read_rows, read_vectors, write_vectors
from awqkit_runtime.cache.page_format import (
    PAGE_TOKENS,
    PARAM_DTYPE,
    PARAMS_PER_VECTOR,
    LayerPages,
    PageFormat,
    VectorFormat,
)
from awqkit_runtime.cache.page_rows import (
    PageRows,
    TokenRows,
    layer_rows,
    page_rows,
    piece_rows,
    row_starts,
    token_rows,
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
        stores = list(zip(*self._stores(), strict=True))
        params = self._params() if format.quantized else [None] * format.num_layers
        self._layers = tuple(map(self._layer_pages, stores, params))
        self._layer_rows = tuple(layer_rows(format, *x) for x in zip(stores, params, strict=True))
        self._row_starts = row_starts(self._layer_rows[0])

    @property
    def nbytes(self) -> int:
        return self.num_pages * self.format.bytes_per_page

    def layer(self, layer: int) -> LayerPages:
        """Every page of a layer, as they are stored."""
        return self._layers[layer]

    def append(self, layer: int, k: Tensor, v: Tensor, slots: Tensor) -> None:
        """Store k and v [T, kv_heads, head_dim] (keys after rotary) at slots, int64 [T]."""
        self.append_rows(layer, k, v, self.rows(slots))

    def append_rows(self, layer: int, k: Tensor, v: Tensor, rows: TokenRows) -> None:
        """As append(), where rows() has been asked already."""
        write_vectors(self._layer_rows[layer], self.key_frame.keys(layer, k), v, rows)

    def queries(self, layer: int, q: Tensor) -> Tensor:
        """q [T, heads, head_dim] after rotary → as queries of the keys that gather() gives."""
        return self.key_frame.queries(layer, q)

    def gather(self, layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        """k and v [N, kv_heads, head_dim] at slots, int64 [N], as the pages hold them.

        Keys are in the frame. float32 from quantized pages and on a CPU, else the model's dtype.
        The vectors of one head lie in one piece.
        """
        return self.gather_rows(layer, self.rows(slots))

    def rows(self, slots: Tensor) -> TokenRows:
        """Where every layer has the tokens at slots, int64 [N]."""
        return token_rows(self.format, self._row_starts, slots)

    def page_rows(self, pages: Tensor, wanted: slice, hidden: Tensor | None) -> PageRows:
        """Where every layer has the wanted tokens of sequences' pages, int64 [batch, P].

        wanted: of the P · PAGE_TOKENS tokens of each sequence. hidden: those of the wanted ones,
        int64, counted through all sequences, for which zeros are read.
        """
        return page_rows(self.format, self._row_starts, pages, wanted, hidden)

    def gather_rows(self, layer: int, rows: TokenRows | PageRows) -> tuple[Tensor, Tensor]:
        """As gather(), where rows() or page_rows() has been asked already."""
        return read_vectors(self._layer_rows[layer], rows)

    def piece_rows(self, keys: Tensor) -> TokenRows:
        """Where every layer has keys and the values beside them.

        keys: int64 [1, R], rows of keys in the store of the vectors, in any order; [2, R] where
        pages are quantized, then of their parameters.
        """
        return piece_rows(self.format, self._row_starts, keys)

    def read_rows(self, layer: int, rows: TokenRows) -> Tensor:
        """Keys and then values, [2, R, head_dim], in the order of the rows; dtypes as gather()."""
        return read_rows(self._layer_rows[layer], rows)

    def _layer_pages(self, stores: tuple[Tensor, ...], params: Tensor | None) -> LayerPages:
        keys, values = stores if len(stores) == 2 else stores[0].chunk(2)
        return LayerPages(format=self.format, keys=keys, values=values, params=params)

    def _stores(self) -> tuple[Tensor, ...]:
        """Of all layers, [layers, pages, kv_heads, PAGE_TOKENS, …]: keys, values.

        In one, the values' pages behind the keys', where both are of one width: torch on a CPU
        takes as long to begin an operation as to move a small model's vectors.
        """
        key, value = self.format.key, self.format.value
        if key == value:
            return (self._store(key, 2 * self.num_pages),)
        return self._store(key, self.num_pages), self._store(value, self.num_pages)

    def _store(self, vector: VectorFormat, pages: int) -> Tensor:
        form = self.format
        elements, dtype = (
            (vector.element_bytes, torch.uint8)
            if vector.quantized
            else (vector.head_dim, vector.dtype)
        )
        shape = (form.num_layers, pages, form.num_kv_heads, PAGE_TOKENS, elements)
        return torch.empty(shape, dtype=dtype, device=self.device)

    def _params(self) -> Tensor:
        form = self.format
        heads = 2 * form.num_kv_heads
        shape = (form.num_layers, self.num_pages, heads, PAGE_TOKENS, PARAMS_PER_VECTOR)
        return torch.empty(shape, dtype=PARAM_DTYPE, device=self.device)
