"""A linear with an 8-bit weight, for which there is no kernel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from awqkit.checkpoint import QuantizedWeight
from awqkit.checkpoint.layout import GROUP_SIZE
from awqkit_runtime.layers.placement import Placement
from awqkit_runtime.layers.quantized_table import QuantizedTable

#: Weights that are unpacked at once: on a CPU they stay in its outer cache, a GPU they keep busy.
_CPU_ELEMENTS, _GPU_ELEMENTS = 2**19, 2**22


class WideLinear(nn.Module):
    """x · Wᵀ + b: one panel of rows after the other is unpacked into the same memory."""

    bias: Tensor | None
    #: On a GPU kept, so that steps take no memory besides what the weights were counted for.
    unpacked: Tensor | None
    narrowed: Tensor | None

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None, placement: Placement) -> None:
        super().__init__()
        self.table = QuantizedTable(weight, placement)
        self.register_buffer("bias", None if bias is None else placement.parameter(bias))
        shape = _panel_shape(weight.out_features, weight.in_features, placement)
        self._shape = shape
        device, dtype = placement.device, placement.activation_dtype
        keeps = device.type == "cuda"
        self.register_buffer("unpacked", torch.empty(shape, device=device) if keeps else None)
        narrows = keeps and dtype != torch.float32
        self.register_buffer(
            "narrowed", torch.empty(shape, device=device, dtype=dtype) if narrows else None
        )

    def rows(self, which: Tensor) -> QuantizedWeight:
        """Those of the weight. which: int64 [n]."""
        return self.table.rows(which)

    def forward(self, x: Tensor) -> Tensor:
        flat, total = x.flatten(0, -2), self.table.num_rows
        product = x.new_empty(len(flat), total)
        unpacked = torch.empty(self._shape) if self.unpacked is None else self.unpacked
        for start in range(0, total, len(unpacked)):
            panel = self._panel(slice(start, min(start + len(unpacked), total)), unpacked)
            product[:, start : start + len(panel)] = flat @ panel.T
        if self.bias is not None:
            product += self.bias
        return product.view(*x.shape[:-1], total)

    def _panel(self, rows: slice, unpacked: Tensor) -> Tensor:
        """These rows' weights in x's dtype, computed in float32, where their product is exact."""
        part = self.table.rows(rows)
        count = part.out_features
        weight = unpacked[:count]
        grouped = weight.view(count, -1, GROUP_SIZE).copy_(part.codes.view(count, -1, GROUP_SIZE))
        grouped.sub_(part.zeros.unsqueeze(-1)).mul_(part.scales.unsqueeze(-1))
        return weight if self.narrowed is None else self.narrowed[:count].copy_(weight)


def panel_bytes(rows: int, columns: int, placement: Placement) -> int:
    """What a WideLinear keeps besides its weight."""
    if placement.device.type != "cuda":
        return 0
    dtype = placement.activation_dtype
    narrowed = 0 if dtype == torch.float32 else dtype.itemsize
    panel, columns = _panel_shape(rows, columns, placement)
    return panel * columns * (torch.float32.itemsize + narrowed)


def _panel_shape(rows: int, columns: int, placement: Placement) -> tuple[int, int]:
    elements = _CPU_ELEMENTS if placement.device.type == "cpu" else _GPU_ELEMENTS
    return min(rows, max(1, elements // columns)), columns
