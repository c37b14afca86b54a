// x as the warps of w4_stationary.cu hold it, operands of mma.sync in registers, and what they make of
// it: the sums of one row tile and their way through shared memory.
#pragma once

#include "w4_decode_problem.cuh"

namespace w4_stationary {

using namespace w4_decode;

constexpr int kWarps = 16;
constexpr int kWarpGroups = 2;      // groups of a warp in a row tile, kWarps apart
constexpr int kGroup = 128;
constexpr int kCodeBytes = 1024;   // of 16 rows and one group
constexpr int kScaleBytes = 64;    // of 16 rows and one group
constexpr int kTileGroups = kWarps * kWarpGroups;
constexpr int kPartialBytes = 512;  // a warp's sums of a row tile: 16 rows x 8 tokens

// Keeps what is worked out once in its register.
__device__ __forceinline__ void keep(u32& value) { asm volatile("" : "+r"(value)); }

__device__ __forceinline__ u32 raise(u32 pair) {
  u32 d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(pair), "r"(0x5f805f80u), "r"(0x80008000u));
  return d;
}

// Lane c of four holds row c of a 4 x 4 matrix, and then column c.
__device__ __forceinline__ void transpose(u32 (&v)[4], int lane) {
#pragma unroll
  for (int bit = 1; bit <= 2; bit *= 2) {
    const bool upper = lane & bit;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i & bit) continue;
      const u32 got = __shfl_xor_sync(0xffffffffu, upper ? v[i] : v[i + bit], bit);
      if (upper)
        v[i] = got;
      else
        v[i + bit] = got;
    }
  }
}

// A code, masked out of a word, is the bits of a subnormal BF16 number, code * 2^-133, or sixteen
// times that where it stands four bits higher. The tensor cores take it as it is; x is raised by 2^64,
// so that products are no subnormals of FP32. Zero points meet the sum of a group's inputs:
// s * (sum of code * x - z * sum of x).
class StationaryX {
 public:
  // first: the warp's first group; the other one follows kWarps further on, if there is one before `end`.
  __device__ __forceinline__ void load(const Problem& p, int first, int end, int lane) {
    const int token = lane / 4, column = lane % 4;
#pragma unroll
    for (int j = 0; j < kWarpGroups; ++j)
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        const int group = first + j * kWarps;
        const bool there = group < end && token < p.m;
        const u16* source =
            p.x + static_cast<size_t>(token) * p.k + group * kGroup + 32 * q + 8 * column;
        const uint4 v = there ? __ldcg(reinterpret_cast<const uint4*>(source)) : uint4{};
        x_[j][q][0] = v.x, x_[j][q][1] = v.y, x_[j][q][2] = v.z, x_[j][q][3] = v.w;
      }
    const u32 ones[4] = {0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u};
#pragma unroll
    for (int j = 0; j < kWarpGroups; ++j) {
      float sums[4] = {};
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        transpose(x_[j][q], lane);
        mma(sums, ones, x_[j][q][0], x_[j][q][1]);
        mma(sums, ones, x_[j][q][2], x_[j][q][3]);
#pragma unroll
        for (int i = 0; i < 4; ++i) x_[j][q][i] = raise(x_[j][q][i]);
      }
      sums_[j][0] = sums[0], sums_[j][1] = sums[1];
    }
  }

  // total += the products with group j of a row tile; words: the lane's codes.
  __device__ __forceinline__ void add_group(float (&total)[4], int j, const uint4 (&words)[2],
                                            uint2 params) const {
    const u32 word[8] = {words[0].x, words[0].y, words[0].z, words[0].w,
                         words[1].x, words[1].y, words[1].z, words[1].w};
    float sum[4] = {};
#pragma unroll
    for (int step = 0; step < 8; ++step) {
      const u32 upper = word[step] >> 8;
      const u32 a[4] = {word[step] & 0x000f000fu, word[step] & 0x00f000f0u, upper & 0x000f000fu,
                        upper & 0x00f000f0u};
      mma(sum, a, x_[j][step / 2][2 * (step % 2)], x_[j][step / 2][2 * (step % 2) + 1]);
    }
    const u32 param[2] = {params.x, params.y};
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const float scale = half_bits_to_float(param[row]);
      const float minus_zero = 128.0f - __uint_as_float(param[row] & 0xffff0000u);
      const float raised = scale * (row ? 0x1p65f : 0x1p69f), offset = scale * minus_zero;
#pragma unroll
      for (int i = 2 * row; i < 2 * row + 2; ++i)
        total[i] += raised * sum[i] + offset * sums_[j][i % 2];
    }
  }

 private:
  u32 x_[kWarpGroups][4][4];
  float sums_[kWarpGroups][2];  // of a group's inputs, for tokens 2c and 2c + 1
};

// A lane's sums of a row tile are of rows r and r + 8 and tokens 2c and 2c + 1, r = lane / 4, c = lane % 4,
// as mma.sync leaves them.
__device__ __forceinline__ void store_partial(u32 target, const float (&total)[4]) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(target), "f"(total[0]), "f"(total[1]),
               "f"(total[2]), "f"(total[3])
               : "memory");
}

__device__ __forceinline__ void add(float (&sum)[4], const uint4& v) {
  sum[0] += __uint_as_float(v.x);
  sum[1] += __uint_as_float(v.y);
  sum[2] += __uint_as_float(v.z);
  sum[3] += __uint_as_float(v.w);
}

// Over the warps, always in the same order.
__device__ __forceinline__ void add_partials(float (&sum)[4], u32 partials) {
#pragma unroll
  for (int w = 0; w < kWarps; ++w) add(sum, load_shared_16(partials + w * kPartialBytes));
}

// A lane of an even row takes the next row's sum of its first token for its own of the second.
__device__ __forceinline__ void store_rows(const Problem& p, int tile, const float (&sum)[4], int lane) {
  const bool odd = lane & 4;
  const int token = lane % 4 * 2 + odd;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const float got = __shfl_xor_sync(0xffffffffu, odd ? sum[i] : sum[i + 1], 4);
    const float2 value = {odd ? got : sum[i], odd ? sum[i + 1] : got};
    store_pair(p, tile, 8 * token + 2 * i + lane / 8, value);
  }
}

}  // namespace w4_stationary
