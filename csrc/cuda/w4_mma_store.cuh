// From a warp's accumulators to row-major Y, without shared memory.
//
// A warp holds 32 output rows x kTokens tokens: sums[(8-token block * 2 + row half) * 4 ...], in the
// fragment layout of mma.m16n8k16. For 8 tokens, four 8 x 8 matrices (rows 0-7, 8-15, 16-23,
// 24-31) are transposed across the warp and then across each quad, so that every lane ends with
// 8 successive rows of one token: one 16-byte store, 64 bytes side by side in a quad.
#pragma once

#include "w4_mma_async.cuh"

namespace w4_mma {

struct Output {
  unsigned short* y;           // BF16 [m, n]
  const unsigned short* bias;  // BF16 [n] or null
  int m;
  int n;
};

// Lane c of a quad gives words[j] to lane j and gets word c of every lane.
__device__ __forceinline__ void transpose_quad(u32 (&words)[4]) {
  const int lane = threadIdx.x % 4;
#pragma unroll
  for (int distance = 1; distance < 4; distance *= 2) {
    const bool upper = lane & distance;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i & distance) continue;
      const u32 given = upper ? words[i] : words[i + distance];
      const u32 got = __shfl_xor_sync(0xffffffffu, given, distance);
      (upper ? words[i] : words[i + distance]) = got;
    }
  }
}

__device__ __forceinline__ float load_bias(const Output& out, int row) {
  if (out.bias == nullptr || row >= out.n) return 0.0f;
  return __uint_as_float(static_cast<u32>(out.bias[row]) << 16);
}

template <int kTokens>
__device__ __forceinline__ void store_warp_tile(const float* sums, const Output& out, int row,
                                                int token) {
  const int lane = threadIdx.x % 32;
  float bias[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) bias[i] = load_bias(out, row + 8 * i + lane / 4);
  const int own_row = row + 8 * (lane % 4);
#pragma unroll
  for (int block = 0; block < kTokens / 8; ++block) {
    u32 words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* pair = sums + (2 * block + i / 2) * 4 + 2 * (i % 2);
      words[i] = transpose_matrix(pack_bf16(pair[0] + bias[i], pair[1] + bias[i]));
    }
    transpose_quad(words);
    const int own_token = token + 8 * block + lane / 4;
    if (own_token < out.m && own_row < out.n)
      *reinterpret_cast<uint4*>(out.y + static_cast<long long>(own_token) * out.n + own_row) =
          make_uint4(words[0], words[1], words[2], words[3]);
  }
}

}  // namespace w4_mma
