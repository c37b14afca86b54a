"""Bytes of a cache page, defined once; pool, planner and kernels derive every size from here.

A page holds PAGE_TOKENS tokens. For each layer and kv head it has one run of key vectors and one of
value vectors, token after token, so that a head is read in one piece:

    keys, values    [layers, pages, kv_heads, PAGE_TOKENS, element_bytes]

A dense vector is head_dim elements of the model's dtype. A quantized one is head_dim codes of 8 or
4 bits; its scale and minimum, both FP16, lie in a third array, again in one run per head:

    params          [layers, pages, key heads then value heads, PAGE_TOKENS, (scale, minimum)]

    x = code · scale + minimum        scale = (max − min) / (2^bits − 1)

over the head_dim elements, keys after rotary; in 4 bits both are then fitted to the codes, and keys
may lie in another frame (page_codec, key_frame). Byte i of a 4-bit vector holds element i in its
low nibble and element i + head_dim/2 in its high one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from awqkit.checkpoint.decoder_config import DecoderConfig
from awqkit_runtime.config import QuantPolicy, parse_quant_policy

PAGE_TOKENS = 64
#: Scale and minimum of one quantized vector.
PARAM_DTYPE = torch.float16
PARAMS_PER_VECTOR = 2

#: Bits of keys and of values under each quantizing policy.
_POLICY_BITS: dict[QuantPolicy, tuple[int, int]] = {8: (8, 8), "k8v4": (8, 4), 4: (4, 4)}


@dataclass(frozen=True, kw_only=True)
class VectorFormat:
    """How one key or value vector of head_dim elements is stored."""

    head_dim: int
    #: Of each element: 8 or 4 are codes; any other width is dtype itself.
    bits: int
    #: Of the elements before quantization.
    dtype: torch.dtype

    @property
    def quantized(self) -> bool:
        return self.bits in (4, 8)

    @property
    def element_bytes(self) -> int:
        """Bytes of codes, or of the dense elements."""
        return self.head_dim * self.bits // 8

    @property
    def param_bytes(self) -> int:
        return PARAMS_PER_VECTOR * PARAM_DTYPE.itemsize if self.quantized else 0

    @property
    def bytes_per_vector(self) -> int:
        return self.element_bytes + self.param_bytes


@dataclass(frozen=True, kw_only=True)
class PageFormat:
    """How a page stores keys and values of every layer. bits: 4, 8, or those of dtype (dense)."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    k_bits: int
    v_bits: int
    #: The model's; what dense pages hold.
    dtype: torch.dtype

    def __post_init__(self) -> None:
        dense = self.dtype.itemsize * 8
        bits = (self.k_bits, self.v_bits)
        if bits != (dense, dense) and not set(bits) <= {4, 8}:
            raise ValueError(f"pages hold codes of 4 or 8 bits or {self.dtype}, not {bits}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; two codes share a byte")

    @classmethod
    def for_policy(
        cls, config: DecoderConfig, quant_policy: int | str, dtype: torch.dtype
    ) -> PageFormat:
        """The format of a model's pages; ConfigError for an unknown policy."""
        dense = dtype.itemsize * 8
        policy = parse_quant_policy(quant_policy)
        k_bits, v_bits = _POLICY_BITS.get(policy, (dense, dense))
        return cls(
            num_layers=config.num_layers,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            k_bits=k_bits,
            v_bits=v_bits,
            dtype=dtype,
        )

    @property
    def quantized(self) -> bool:
        return self.key.quantized

    @property
    def key(self) -> VectorFormat:
        return VectorFormat(head_dim=self.head_dim, bits=self.k_bits, dtype=self.dtype)

    @property
    def value(self) -> VectorFormat:
        return VectorFormat(head_dim=self.head_dim, bits=self.v_bits, dtype=self.dtype)

    def narrower(self) -> dict[QuantPolicy, PageFormat]:
        """Of the same model, those whose pages are smaller, by their policies."""
        formats = {
            policy: replace(self, k_bits=k_bits, v_bits=v_bits)
            for policy, (k_bits, v_bits) in _POLICY_BITS.items()
        }
        size = self.bytes_per_page
        return {policy: one for policy, one in formats.items() if one.bytes_per_page < size}

    @property
    def bytes_per_token(self) -> int:
        """Of all layers, keys and values, parameters included."""
        vectors = self.num_layers * self.num_kv_heads
        return vectors * (self.key.bytes_per_vector + self.value.bytes_per_vector)

    @property
    def bytes_per_page(self) -> int:
        """Of all layers, keys and values, parameters included."""
        return PAGE_TOKENS * self.bytes_per_token


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerPages:
    """The pages of one layer, as kernels get them. All tensors are contiguous."""

    format: PageFormat
    #: uint8 [pages, kv_heads, PAGE_TOKENS, element_bytes] of codes, or
    #: [pages, kv_heads, PAGE_TOKENS, head_dim] of the model's dtype.
    keys: Tensor
    #: As keys, in their own width.
    values: Tensor
    #: float16 [pages, 2 · kv_heads, PAGE_TOKENS, 2], scale and minimum; None where dense.
    params: Tensor | None


def pages_for(tokens: int) -> int:
    """Pages that hold this many tokens."""
    return -(-tokens // PAGE_TOKENS)
