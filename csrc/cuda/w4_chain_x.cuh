// x as the warps of w4_chain.cu hold it, operands of mma.sync in registers, and what they make of
// it: the sums of one row tile and their way through shared memory.
#pragma once

#include "w4_chain_work.cuh"

namespace w4_chain {

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
  // sums: where in shared memory the warp keeps the sums of its groups' inputs.
  __device__ __forceinline__ explicit StationaryX(u32 sums, int lane) : sums_(sums + lane % 4 * 8) {}

  // tokens: rows of x from x on. first: the warp's first group; the others follow kStageGroups apart,
  // up to `end`.
  __device__ __forceinline__ void load(const u16* x, int tokens, int k, int first, int end, int lane) {
#pragma unroll
    for (int j = 0; j < kUnitStages; ++j)
#pragma unroll
      for (int t = 0; t < kTokenTiles; ++t)
#pragma unroll
        for (int q = 0; q < 4; ++q) {
          const int group = first + j * kStageGroups, token = 8 * t + lane / 4;
          const u16* source = x + static_cast<size_t>(token) * k + group * kGroup + 32 * q + 8 * (lane % 4);
          const bool there = group < end && token < tokens;
          const uint4 v = there ? __ldcg(reinterpret_cast<const uint4*>(source)) : uint4{};
          x_[j][t][q][0] = v.x, x_[j][t][q][1] = v.y, x_[j][t][q][2] = v.z, x_[j][t][q][3] = v.w;
        }
    const u32 ones[4] = {0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u};
#pragma unroll
    for (int j = 0; j < kUnitStages; ++j)
#pragma unroll
      for (int t = 0; t < kTokenTiles; ++t) {
        float sums[4] = {};
#pragma unroll
        for (int q = 0; q < 4; ++q) {
          transpose(x_[j][t][q], lane);
          mma(sums, ones, x_[j][t][q][0], x_[j][t][q][1]);
          mma(sums, ones, x_[j][t][q][2], x_[j][t][q][3]);
#pragma unroll
          for (int i = 0; i < 4; ++i) x_[j][t][q][i] = raise(x_[j][t][q][i]);
        }
        // Of tokens 2c and 2c + 1, the same in every row.
        if (lane < 4) store_shared_8(sums_at(j, t), {sums[0], sums[1]});
      }
    __syncwarp();
  }

  // sum += the products with half a group's codes; word: the lane's.
  __device__ __forceinline__ void add_half(float (&sum)[kTokenTiles][4], int j, int half,
                                           const uint4& words) const {
    const u32 word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const u32 upper = word[i] >> 8;
      const u32 a[4] = {word[i] & 0x000f000fu, word[i] & 0x00f000f0u, upper & 0x000f000fu,
                        upper & 0x00f000f0u};
      const int step = 4 * half + i;
#pragma unroll
      for (int t = 0; t < kTokenTiles; ++t)
        mma(sum[t], a, x_[j][t][step / 2][2 * (step % 2)], x_[j][t][step / 2][2 * (step % 2) + 1]);
    }
  }

  // total += scales and zero points applied to the sums of group j.
  __device__ __forceinline__ void scale(float (&total)[kTokenTiles][4],
                                        const float (&sum)[kTokenTiles][4], int j, uint2 params) const {
    const u32 param[2] = {params.x, params.y};
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const float scale = half_bits_to_float(param[row]);
      const float minus_zero = 128.0f - __uint_as_float(param[row] & 0xffff0000u);
      const float raised = scale * (row ? 0x1p65f : 0x1p69f), offset = scale * minus_zero;
#pragma unroll
      for (int t = 0; t < kTokenTiles; ++t) {
        const float2 inputs = load_shared_float2(sums_at(j, t));
        total[t][2 * row] += raised * sum[t][2 * row] + offset * inputs.x;
        total[t][2 * row + 1] += raised * sum[t][2 * row + 1] + offset * inputs.y;
      }
    }
  }

 private:
  __device__ __forceinline__ u32 sums_at(int j, int t) const {
    return sums_ + (j * kTokenTiles + t) * 32;
  }

  u32 x_[kUnitStages][kTokenTiles][4][4];
  u32 sums_;
};

// Where a warp's sum lies, in floats: such that no two lanes of a warp, nor of the sixteen pairs that
// half a warp reads, meet in a bank.
__device__ __forceinline__ int partial_index(int token, int row) {
  const int c = token % 8 / 2;
  return token / 8 * 128 + (2 * c + (token % 2 ^ c / 2)) * 16 + (row ^ c % 2 * 8);
}

__device__ __forceinline__ void store_partial(u32 target, const float (&total)[kTokenTiles][4],
                                              int lane) {
  const int r = lane / 4, c = lane % 4;
#pragma unroll
  for (int t = 0; t < kTokenTiles; ++t)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      store_shared_4(target + 4 * partial_index(8 * t + 2 * c + i % 2, r + 8 * (i / 2)), total[t][i]);
}

// The sum over the warps of one pair of neighbouring rows, always in the same order: a lane for each
// pair adds up every kShares-th warp's, from `share` on, and then the lanes' sums meet.
__device__ __forceinline__ float2 add_partials(u32 partials, int pair, int share) {
  const u32 at = partials + 4 * partial_index(pair / 8, pair % 8 * 2) + share * kPartialBytes;
  float2 all = {0.f, 0.f};
#pragma unroll
  for (int w = 0; w < kWarps; w += kShares) {
    const float2 part = load_shared_float2(at + w * kPartialBytes);
    all.x += part.x;
    all.y += part.y;
  }
#pragma unroll
  for (int distance = kPairsOfWarp; distance < 32; distance *= 2) {
    all.x += __shfl_xor_sync(0xffffffffu, all.x, distance);
    all.y += __shfl_xor_sync(0xffffffffu, all.y, distance);
  }
  return all;
}

}  // namespace w4_chain
