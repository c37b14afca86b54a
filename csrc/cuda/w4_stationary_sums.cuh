// From the sums of w4_stationary.cu's warps to y, where K is cut in slices by way of other blocks.
//
// A lane's sums of a row tile are of rows r and r + 8 and tokens 2c and 2c + 1, r = lane / 4, c = lane % 4,
// as mma.sync leaves them.
#pragma once

#include "w4_stationary_x.cuh"

namespace w4_stationary {

__device__ __forceinline__ void store_shared_16(u32 target, const float (&v)[4]) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(target), "f"(v[0]), "f"(v[1]),
               "f"(v[2]), "f"(v[3])
               : "memory");
}

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

// A lane of an even row takes the next row's sum of its first token for its own of the second.
__device__ __forceinline__ void store_rows(const Problem& p, int tile, int t, const float (&sum)[4],
                                           int lane) {
  const bool odd = lane & 4;
  const int token = 8 * t + lane % 4 * 2 + odd;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const float got = __shfl_xor_sync(0xffffffffu, odd ? sum[i] : sum[i + 1], 4);
    const float2 value = {odd ? got : sum[i], odd ? sum[i + 1] : got};
    store_pair(p, tile, 8 * token + 2 * i + lane / 8, value);
  }
}

// ---- sums of slices: through memory in which a sum that is not there yet is 0 ---------------------

// No sum is written as 0: one that is becomes -0, whose bits are not.
__device__ __forceinline__ u32 shown(float sum) {
  const u32 bits = __float_as_uint(sum);
  return bits == 0 ? 0x80000000u : bits;
}

__device__ __forceinline__ bool complete(const uint4& v) {
  return v.x != 0 && v.y != 0 && v.z != 0 && v.w != 0;
}

__device__ __forceinline__ void store_now(uint4* address, uint4 value) {
  asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(value.x),
               "r"(value.y), "r"(value.z), "r"(value.w)
               : "memory");
}

__device__ __forceinline__ uint4 load_now(const uint4* address) {
  uint4 v;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(address)
               : "memory");
  return v;
}

// This lane's slot for a row tile, a slice and a tile of tokens; the next slice's lies kPartialBytes on.
__device__ __forceinline__ uint4* slot_of(unsigned char* parts, int slices, int tile, int slice, int t,
                                          int lane) {
  const size_t at = (static_cast<size_t>(tile) * slices + slice) * kPartialBytes + 512 * t;
  return reinterpret_cast<uint4*>(parts + at) + lane;
}

__device__ __forceinline__ void hand_on(unsigned char* parts, int slices, int tile, int slice, int t,
                                        const float (&sum)[4], int lane) {
  store_now(slot_of(parts, slices, tile, slice, t, lane),
            {shown(sum[0]), shown(sum[1]), shown(sum[2]), shown(sum[3])});
}

// Adds up the slices, always in the same order, a row tile and a tile of tokens a warp of all blocks',
// and leaves zeros behind. Waits for blocks of all slices.
__device__ __forceinline__ void join_slices(const Problem& p, unsigned char* parts, int slices, int warp,
                                            int warps, int lane) {
  constexpr int kTogether = 4;
  const int items = (p.n + 15) / 16 * kTokenTiles;
#pragma unroll 1
  for (int item = warp; item < items; item += warps) {
    const int tile = item / kTokenTiles, t = item % kTokenTiles;
    float sum[4] = {};
#pragma unroll 1
    for (int first = 0; first < slices; first += kTogether) {
      uint4* slot = slot_of(parts, slices, tile, first, t, lane);
      uint4 part[kTogether] = {};
      bool all;
      do {
        all = true;
#pragma unroll
        for (int s = 0; s < kTogether; ++s)
          if (first + s < slices) {
            if (!complete(part[s])) part[s] = load_now(slot + s * (kPartialBytes / 16));
            all &= complete(part[s]);
          }
      } while (!all);
#pragma unroll
      for (int s = 0; s < kTogether; ++s)
        if (first + s < slices) {
          add(sum, part[s]);
          store_now(slot + s * (kPartialBytes / 16), {0, 0, 0, 0});
        }
    }
    __syncwarp();
    store_rows(p, tile, t, sum, lane);
  }
}

}  // namespace w4_stationary
