// Parts of one segment's softmax that several warps or blocks have, put together in a fixed order.
//
// A record holds, for each lane side by side, its heads' maxima and sums and its outputs, all in
// FP32: [kRecordQuads][32] float4. Lanes without heads leave theirs out.
#pragma once

#include "paged_decode_softmax.cuh"

namespace paged_decode {

constexpr int kRecordQuads = kHeadTiles * (1 + kDimTiles);
constexpr int kRecordFloats = kRecordQuads * 32 * 4;

__device__ __forceinline__ bool has_heads(int n, int count, int lane) {
  return 8 * n + 2 * (lane % 4) < count;
}

// record: the lane's first float4, in shared or global memory.
__device__ __forceinline__ void store_record(float4* record, const Softmax& softmax, int count,
                                             int lane) {
#pragma unroll
  for (int n = 0; n < kHeadTiles; ++n) {
    if (!has_heads(n, count, lane)) continue;
    float4* to = record + n * (1 + kDimTiles) * 32;
    to[0] = make_float4(softmax.maximum[n][0], softmax.maximum[n][1], softmax.sum[n][0],
                        softmax.sum[n][1]);
#pragma unroll
    for (int j = 0; j < kDimTiles; ++j)
      to[(1 + j) * 32] = make_float4(softmax.out[n][j][0], softmax.out[n][j][1],
                                     softmax.out[n][j][2], softmax.out[n][j][3]);
  }
}

struct SharedRecord {
  __device__ __forceinline__ static float4 load(const float4* from) { return *from; }
};

// What other blocks have written is in L2.
struct GlobalRecord {
  __device__ __forceinline__ static float4 load(const float4* from) { return __ldcg(from); }
};

// The softmax goes on with what comes after it. It must have been gathered, and is one then.
template <class Memory>
__device__ __forceinline__ void add_record(Softmax& softmax, const float4* record, int count,
                                           int lane) {
#pragma unroll
  for (int n = 0; n < kHeadTiles; ++n) {
    if (!has_heads(n, count, lane)) continue;
    const float4* from = record + n * (1 + kDimTiles) * 32;
    float4 quads[1 + kDimTiles];
#pragma unroll
    for (int j = 0; j <= kDimTiles; ++j) quads[j] = Memory::load(from + j * 32);
    const float other_maximum[2] = {quads[0].x, quads[0].y};
    const float other_sum[2] = {quads[0].z, quads[0].w};
    float own[2], other[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float top = fmaxf(softmax.maximum[n][i], other_maximum[i]);
      own[i] = power_of_two(softmax.maximum[n][i] - top);
      other[i] = power_of_two(other_maximum[i] - top);
      softmax.maximum[n][i] = top;
      softmax.sum[n][i] = softmax.sum[n][i] * own[i] + other_sum[i] * other[i];
    }
#pragma unroll
    for (int j = 0; j < kDimTiles; ++j) {
      float (&out)[4] = softmax.out[n][j];
      const float4& quad = quads[1 + j];
      out[0] = out[0] * own[0] + quad.x * other[0];
      out[1] = out[1] * own[1] + quad.y * other[1];
      out[2] = out[2] * own[0] + quad.z * other[0];
      out[3] = out[3] * own[1] + quad.w * other[1];
    }
  }
}

// out: [heads, kHeadDim] of the row, from the group's first head on.
__device__ __forceinline__ void store_output(u16* out, const Softmax& softmax, int count, int lane) {
#pragma unroll
  for (int n = 0; n < kHeadTiles; ++n)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int head = 8 * n + 2 * (lane % 4) + i;
      if (head >= count) continue;
      const float factor = 1.0f / softmax.sum[n][i];
#pragma unroll
      for (int first = 0; first < kDimTiles; first += kRunTiles) {
        u32 run[kRunTiles];
#pragma unroll
        for (int k = 0; k < kRunTiles; ++k) {
          const float (&pair)[4] = softmax.out[n][first + k];
          run[k] = pack_bf16(pair[i] * factor, pair[2 + i] * factor);
        }
        u16* to = out + head * kHeadDim + value_dim(first, lane / 4);
        if constexpr (kRunTiles == 4)
          *reinterpret_cast<uint4*>(to) = make_uint4(run[0], run[1], run[2], run[3]);
        else if constexpr (kRunTiles == 2)
          *reinterpret_cast<uint2*>(to) = make_uint2(run[0], run[1]);
        else
          *reinterpret_cast<u32*>(to) = run[0];
      }
    }
}

}  // namespace paged_decode
