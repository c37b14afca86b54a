// From accumulators to row-major Y, transposed through shared memory.
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

__device__ __forceinline__ void store_matrices_transposed(u32 address, u32 a, u32 b) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(address),
               "r"(a), "r"(b)
               : "memory");
}

struct Output {
  unsigned short* y;           // BF16 [m, n]
  const unsigned short* bias;  // BF16 [n] or null
  int m;
  int n;
};

// Writes kStoreTokens tokens x 64 rows at a time. In shared memory every 16-byte chunk (8 rows of
// one token) lies at its index XOR token mod 8, so that neither side meets bank conflicts. Two
// buffers and one barrier a pass: the readers of the other buffer are a pass behind.
class Store {
 public:
  __device__ __forceinline__ Store(const Output& out, u32 buffers, int barrier)
      : out_(out), buffers_(buffers), barrier_(barrier) {
    const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    const int matrix = lane / 8, line = lane % 8;
    write_at_ = (8 * (matrix / 2) + line) * 128 + (((2 * warp + matrix % 2) ^ line) * 16);
    token_ = threadIdx.x % kWarpgroup / 8;
    chunk_ = threadIdx.x % 8;
    read_at_ = token_ * 128 + ((chunk_ ^ (token_ % 8)) * 16);
  }

  // Adds the bias, rounds to BF16 and writes rows `row`... of tokens `token`...
  // end: of the tile's rows.
  __device__ __forceinline__ void write(const float* sums, int row, int end, int token) {
    const int own_row = row + threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
    const float bias[2] = {load_bias(own_row), load_bias(own_row + 8)};
    const u32 buffer = buffers_ + turn_ * kStoreBytes;
    turn_ ^= 1;
    if constexpr (kStoreTokens == 8) {
      store_matrices_transposed(buffer + write_at_,
                                pack_bf16(sums[0] + bias[0], sums[1] + bias[0]),
                                pack_bf16(sums[2] + bias[1], sums[3] + bias[1]));
    } else {
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
        const float* s = sums + 8 * half;
        store_matrices_transposed(buffer + half * 16 * 128 + write_at_,
                                  pack_bf16(s[0] + bias[0], s[1] + bias[0]),
                                  pack_bf16(s[2] + bias[1], s[3] + bias[1]),
                                  pack_bf16(s[4] + bias[0], s[5] + bias[0]),
                                  pack_bf16(s[6] + bias[1], s[7] + bias[1]));
      }
    }
    w4::named_barrier(barrier_, kWarpgroup);
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      const int to_token = token + token_ + 16 * half, to_row = row + 8 * chunk_;
      if (to_token < out_.m && to_row < end)
        *reinterpret_cast<uint4*>(out_.y + static_cast<long long>(to_token) * out_.n + to_row) =
            load_shared(buffer + half * 16 * 128 + read_at_);
    }
  }

 private:
  // Of 16 tokens. Of 8 that are a tile there is no other tile, so that the threads for the second 8 lie
  // beyond m and write nothing.
  static constexpr int kHalves = kStoreTokens < 16 ? 1 : kStoreTokens / 16;

  __device__ __forceinline__ float load_bias(int row) const {
    return out_.bias == nullptr || row >= out_.n ? 0.0f : bf16_to_float(out_.bias[row]);
  }

  const Output& out_;
  u32 buffers_;
  int barrier_;
  u32 write_at_, read_at_;
  int token_, chunk_;  // which 16 bytes of a pass this thread writes to Y
  int turn_ = 0;
};

}  // namespace w4_prefill
