// What the kernels for few tokens take, and how a sum gets from registers to y.
#pragma once

#include "w4_decode_ptx.cuh"

namespace w4_decode {

struct Problem {
  const unsigned char* codes;
  const unsigned char* scales;
  const u16* x;
  const u16* bias;
  u16* y;
  int m, n, k;
};

// value: of token pair / 8 and two neighbouring rows of the 16 of `tile`.
__device__ __forceinline__ void store_pair(const Problem& p, int tile, int pair, float2 value) {
  const int token = pair / 8, row = 16 * tile + 2 * (pair % 8);
  if (token >= p.m || row >= p.n) return;
  if (p.bias != nullptr) {
    value.x += bf16_bits_to_float(p.bias[row]);
    value.y += bf16_bits_to_float(p.bias[row + 1]);
  }
  *reinterpret_cast<u32*>(p.y + static_cast<size_t>(token) * p.n + row) = pack_bf16(value.x, value.y);
}

}  // namespace w4_decode
