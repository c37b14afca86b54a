// What the decode kernels share: one group of one row tile on the tensor cores, and the sums over
// warps. W4_NT is the number of n8 tiles of tokens, M <= 8 * W4_NT.
#pragma once

#include "w4_decode_problem.cuh"

namespace w4_decode {

constexpr int kNT = W4_NT;
constexpr int kTokens = 8 * kNT;
constexpr int kGroup = 128;
constexpr int kCodeBytes = 1024;   // of 16 rows and one group
constexpr int kScaleBytes = 64;    // of 16 rows and one group
constexpr int kPartialPitch = 20;  // floats a token; 16 rows, padded against bank conflicts
constexpr int kPartialFloats = kTokens * kPartialPitch;
constexpr int kPairs = kTokens * 8;  // pairs of neighbouring rows in one tile's output

struct Share {
  int first, count;
};

// The part of `total` things that falls to one of `parts` equal shares.
__device__ __forceinline__ Share share_of(int total, int parts, int part) {
  const int first = static_cast<int>(static_cast<long long>(total) * part / parts);
  const int last = static_cast<int>(static_cast<long long>(total) * (part + 1) / parts);
  return {first, last - first};
}

// Where lane finds its rows of x for ldmatrix; x lies row by row, `pitch` bytes apart. Tokens past
// M repeat the last one: their columns of the result are not stored.
__device__ __forceinline__ void find_rows(u32 (&x_rows)[kNT], u32 x_shared, int pitch, int m, int lane) {
#pragma unroll
  for (int t = 0; t < kNT; ++t)
    x_rows[t] = x_shared + min(8 * t + lane % 8, m - 1) * pitch + 16 * (lane / 8);
}

// One group of one row tile as the multiplication takes it: codes, scale words and x, in registers.
struct Group {
  uint4 codes[2];
  uint2 params;
  u32 x[kNT][4][4];
};

// codes: the lane's 16 bytes of the group's first half; scales: its pair of scale words.
__device__ __forceinline__ void load_group(Group& group, u32 codes, u32 scales,
                                           const u32 (&x_rows)[kNT], u32 x_offset) {
#pragma unroll
  for (int half = 0; half < 2; ++half) group.codes[half] = load_shared_16(codes + 512 * half);
  group.params = load_shared_8(scales);
#pragma unroll
  for (int t = 0; t < kNT; ++t)
#pragma unroll
    for (int i = 0; i < 4; ++i) load_matrices(group.x[t][i], x_rows[t] + x_offset + 64 * i);
}

// total += s * sum of (q - z) x, with q - z exact in BF16.
__device__ __forceinline__ void add_group(float (&total)[kNT][4], const Group& group) {
  const u32 minus[2] = {minus_offset_pair(group.params.x), minus_offset_pair(group.params.y)};
  const u32 word[8] = {group.codes[0].x, group.codes[0].y, group.codes[0].z, group.codes[0].w,
                       group.codes[1].x, group.codes[1].y, group.codes[1].z, group.codes[1].w};
  float sum[kNT][2][4] = {};
#pragma unroll
  for (int step = 0; step < 8; ++step) {
    u32 a[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = add_pair(raw_pair(word[step] >> (4 * i)), minus[i % 2]);
#pragma unroll
    for (int t = 0; t < kNT; ++t)
      mma(sum[t][step % 2], a, group.x[t][step / 2][2 * (step % 2)],
          group.x[t][step / 2][2 * (step % 2) + 1]);
  }
  const float scale[2] = {half_bits_to_float(group.params.x), half_bits_to_float(group.params.y)};
#pragma unroll
  for (int t = 0; t < kNT; ++t)
#pragma unroll
    for (int i = 0; i < 4; ++i) total[t][i] += scale[i / 2] * (sum[t][0][i] + sum[t][1][i]);
}

// A warp's sums of a row tile, as [token][row].
__device__ __forceinline__ void store_partial(u32 target, const float (&total)[kNT][4], int lane) {
  const int r = lane / 4, c = lane % 4;
#pragma unroll
  for (int t = 0; t < kNT; ++t)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      store_shared_4(target + 4 * ((8 * t + 2 * c + i % 2) * kPartialPitch + r + 8 * (i / 2)),
                     total[t][i]);
}

// The sum over the warps, always in the same order, for one pair of neighbouring rows.
template <int kWarps>
__device__ __forceinline__ float2 add_partials(u32 partials, int pair) {
  const u32 at = partials + 4 * ((pair / 8) * kPartialPitch + 2 * (pair % 8));
  float2 all = {0.f, 0.f};
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    const float2 part = load_shared_float2(at + 4 * w * kPartialFloats);
    all.x += part.x;
    all.y += part.y;
  }
  return all;
}

}  // namespace w4_decode
