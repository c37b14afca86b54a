// From the sums of w4_chain.cu's warps to y, and to the other blocks.
#pragma once

#include "w4_chain_x.cuh"

namespace w4_chain {

__device__ __forceinline__ void store_now(u32* address, u32 value) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}

__device__ __forceinline__ void store_now(uint4* address, uint4 value) {
  asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(value.x),
               "r"(value.y), "r"(value.z), "r"(value.w)
               : "memory");
}

__device__ __forceinline__ void store_shared_16(u32 address, const float (&v)[4]) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(address), "f"(v[0]), "f"(v[1]),
               "f"(v[2]), "f"(v[3])
               : "memory");
}

// How many row tiles of a linear are on their way to whom they concern. It only says when to look: that a
// number is there, its bits say.
__device__ __forceinline__ int* hint(unsigned char* set, int i) {
  return reinterpret_cast<int*>(set + kLinearBytes * i + 64);
}

__device__ __forceinline__ void count_up(int* counter) {
  asm volatile("red.relaxed.gpu.global.add.s32 [%0], %1;" ::"l"(counter), "r"(1) : "memory");
}

__device__ __forceinline__ int load_now(const int* address) {
  int v;
  asm volatile("ld.relaxed.gpu.global.s32 %0, [%1];" : "=r"(v) : "l"(address) : "memory");
  return v;
}

// A lane's sums of a row tile are of rows r and r + 8 and tokens 2c and 2c + 1, r = lane / 4, c = lane % 4,
// as mma.sync leaves them.
__device__ __forceinline__ void add(float (&sum)[4], const uint4& v) {
  sum[0] += __uint_as_float(v.x);
  sum[1] += __uint_as_float(v.y);
  sum[2] += __uint_as_float(v.z);
  sum[3] += __uint_as_float(v.w);
}

// Over a block's warps, always in the same order.
__device__ __forceinline__ void add_partials(float (&sum)[4], u32 partials) {
#pragma unroll
  for (int w = 0; w < kWarps; ++w) add(sum, load_shared_16(partials + w * kPartialBytes));
}

// A lane's slots of a row tile and a slice; those of the next slice lie kPartialBytes further on.
__device__ __forceinline__ uint4* slots(const Linear& linear, unsigned char* set, int tile, int slice,
                                        int t, int lane) {
  const size_t at = (static_cast<size_t>(tile) * linear.slices + slice) * kPartialBytes;
  return reinterpret_cast<uint4*>(set + linear.partials + at + 512 * t) + lane;
}

// To y, and where others wait for it in a set of the workspace, if there is one.
__device__ __forceinline__ void store_rows(const Linear& linear, int m, unsigned char* set, int tile,
                                           int t, const float (&sum)[4], int lane) {
  // A lane of an even row gives its second token for the next row of its first, and the other way round.
  const bool odd = lane & 4;
  const int token = 8 * t + 2 * (lane % 4) + odd;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const float got = __shfl_xor_sync(0xffffffffu, odd ? sum[i] : sum[i + 1], 4);
    float2 value = {odd ? got : sum[i], odd ? sum[i + 1] : got};
    const int row = 16 * tile + 4 * i + lane / 8 * 2;
    if (token >= m || row >= linear.n) continue;
    if (linear.bias != nullptr) {
      value.x += bf16_bits_to_float(linear.bias[row]);
      value.y += bf16_bits_to_float(linear.bias[row + 1]);
    }
    const u32 bits = pack_bf16(value.x, value.y);
    if (set != nullptr) {
      const int at = token * exchange_stride(linear.n) + place_of(row);
      store_now(reinterpret_cast<u32*>(set + linear.exchange + 2 * at), bits);
    }
    if (linear.y != nullptr)
      *reinterpret_cast<u32*>(linear.y + static_cast<size_t>(token) * linear.n + row) = bits;
  }
}

// Adds up the slices, always in the same order: a row tile and a tile of tokens a warp of all blocks'.
__device__ __forceinline__ void join_slices(const Linear& linear, int m, unsigned char* partials,
                                            unsigned char* set, int* hint, int warp, int warps,
                                            int lane) {
  const int items = (linear.n + 15) / 16 * kTokenTiles;
#pragma unroll 1
  for (int item = warp; item < items; item += warps) {
    const int tile = item / kTokenTiles, t = item % kTokenTiles;
    const bool there = 8 * t + lane % 4 * 2 < m;
    float sum[4] = {};
#pragma unroll 1
    for (int first = 0; first < linear.slices; first += 4) {
      const uint4* slot = slots(linear, partials, tile, first, t, lane);
      uint4 part[4];
      bool all;
      do {
        all = true;
#pragma unroll
        for (int s = 0; s < 4; ++s) {
          part[s] = {};
          if (there && first + s < linear.slices) part[s] = load_now(slot + s * (kPartialBytes / 16));
          all &= complete(part[s]);
        }
      } while (!all);
#pragma unroll
      for (int s = 0; s < 4; ++s) add(sum, part[s]);
    }
    __syncwarp();
    store_rows(linear, m, set, tile, t, sum, lane);
    if (lane == 0) count_up(hint);
  }
}

}  // namespace w4_chain
