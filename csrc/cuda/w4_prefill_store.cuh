// From accumulators to row-major Y: the exchange of partial sums between the workers of one
// stream-K tile, and the transposing store through shared memory.
//
// A consumer warpgroup holds 64 output rows (weights) x kTokens: thread l of warp w owns rows
// 16w + l/4 and that + 8, tokens 8j + 2(l%4) and the next one, for every j.
#pragma once

#include "w4_exchange.cuh"
#include "w4_prefill_tile.cuh"

namespace w4_prefill {

__device__ __forceinline__ u32 pack_bf16(float low, float high) {
  u32 pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

__device__ __forceinline__ void store_matrices_transposed(u32 address, u32 a, u32 b, u32 c, u32 d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                   address),
               "r"(a), "r"(b), "r"(c), "r"(d)
               : "memory");
}

__device__ __forceinline__ float bf16_to_float(unsigned short bits) {
  return __uint_as_float(static_cast<u32>(bits) << 16);
}

struct Output {
  unsigned short* y;           // BF16 [m, n]
  const unsigned short* bias;  // BF16 [n] or null
  int m;
  int n;
};

// Adds the bias, rounds to BF16 and writes the 64 rows from `row` x kTokens tokens from `token`.
// Every 16-byte chunk (8 rows of one token) lies at its index XOR token mod 8, so that neither
// side meets bank conflicts. One barrier a pass: the other buffer's readers are a pass behind.
template <int kTokens>
__device__ __forceinline__ void store_tile(const float* sums, const Output& out,
                                           int row, int token, u32 buffers, int barrier_id) {
  const int thread = threadIdx.x % kWarpgroup;
  const int warp = thread / 32, lane = thread % 32;
  float bias[2] = {0.0f, 0.0f};
  if (out.bias != nullptr) {
    const int own = row + 16 * warp + lane / 4;
    if (own < out.n) bias[0] = bf16_to_float(out.bias[own]);
    if (own + 8 < out.n) bias[1] = bf16_to_float(out.bias[own + 8]);
  }
  const int matrix = lane / 8, line = lane % 8;
  const u32 write_at =
      (8 * (matrix / 2) + line) * 128 + (((2 * warp + matrix % 2) ^ line) * 16);
  const int read_token = thread / 8, chunk = thread % 8;
  const u32 read_at = read_token * 128 + ((chunk ^ (read_token % 8)) * 16);
  const bool row_inside = row + 8 * chunk < out.n;
  unsigned short* target =
      out.y + static_cast<long long>(token + read_token) * out.n + row + 8 * chunk;
#pragma unroll
  for (int pass = 0; pass < kTokens / kStoreTokens; ++pass) {
    const u32 buffer = buffers + (pass % 2) * kStoreBytes;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float* s = sums + 16 * pass + 8 * half;
      store_matrices_transposed(buffer + half * 16 * 128 + write_at,
                                pack_bf16(s[0] + bias[0], s[1] + bias[0]),
                                pack_bf16(s[2] + bias[1], s[3] + bias[1]),
                                pack_bf16(s[4] + bias[0], s[5] + bias[0]),
                                pack_bf16(s[6] + bias[1], s[7] + bias[1]));
    }
    w4::named_barrier(barrier_id, kWarpgroup);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int offset = kStoreTokens * pass + 16 * half;
      if (row_inside && token + read_token + offset < out.m)
        *reinterpret_cast<uint4*>(target + static_cast<long long>(offset) * out.n) =
            load_shared(buffer + half * 16 * 128 + read_at);
    }
  }
  w4::named_barrier(barrier_id, kWarpgroup);
}

}  // namespace w4_prefill
