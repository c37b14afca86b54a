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

// One tile of the output of all that several records hold.
struct TileSum {
  float out[4];  // as Softmax.out
  float maximum[2];
  float sum[2];

  __device__ __forceinline__ void reset() {
#pragma unroll
    for (int e = 0; e < 4; ++e) out[e] = 0.0f;
#pragma unroll
    for (int i = 0; i < 2; ++i) maximum[i] = minus_infinity(), sum[i] = 0.0f;
  }

  __device__ __forceinline__ void scale(const float (&factor)[2]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) sum[i] *= factor[i], out[i] *= factor[i], out[2 + i] *= factor[i];
  }

  // heads: maxima, sums. tile: of the same record.
  __device__ __forceinline__ void add(const float4& heads, const float4& tile) {
    const float weight[2] = {power_of_two(heads.x - maximum[0]), power_of_two(heads.y - maximum[1])};
    sum[0] += heads.z * weight[0];
    sum[1] += heads.w * weight[1];
    out[0] += tile.x * weight[0];
    out[1] += tile.y * weight[1];
    out[2] += tile.z * weight[0];
    out[3] += tile.w * weight[1];
  }
};

// Tile `tile` of head tile n, of records.count() records, at least one, in their order. kTogether: whose
// loads are under way at once. records.next(i): the lane's first float4 of record i, asked in order.
template <int kTogether, class Records>
__device__ __forceinline__ TileSum add_tiles(Records records, int n, int tile) {
  const int count = records.count();
  const int heads = n * (1 + kDimTiles) * 32;
  TileSum total;
  total.reset();
#pragma unroll 1
  for (int first = 0; first < count; first += kTogether) {
    float4 head[kTogether], out[kTogether];
#pragma unroll
    for (int k = 0; k < kTogether; ++k) {
      head[k] = make_float4(minus_infinity(), minus_infinity(), 0.0f, 0.0f);
      out[k] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      if (first + k >= count) continue;
      const float4* record = records.next(first + k);
      head[k] = records.load(record + heads);
      out[k] = records.load(record + heads + (1 + tile) * 32);
    }
    float factor[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float top = total.maximum[i];
#pragma unroll
      for (int k = 0; k < kTogether; ++k) top = fmaxf(top, i == 0 ? head[k].x : head[k].y);
      factor[i] = power_of_two(total.maximum[i] - top);
      total.maximum[i] = top;
    }
    total.scale(factor);
#pragma unroll
    for (int k = 0; k < kTogether; ++k) total.add(head[k], out[k]);
  }
  return total;
}

// record: the lane's first float4.
__device__ __forceinline__ void store_record_tile(float4* record, const TileSum& total, int n,
                                                  int tile) {
  float4* to = record + n * (1 + kDimTiles) * 32;
  if (tile == 0)
    to[0] = make_float4(total.maximum[0], total.maximum[1], total.sum[0], total.sum[1]);
  to[(1 + tile) * 32] = make_float4(total.out[0], total.out[1], total.out[2], total.out[3]);
}

// out: as store_output.
__device__ __forceinline__ void store_output_tile(u16* out, const TileSum& total, int n, int tile,
                                                  int count, int lane) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int head = 8 * n + 2 * (lane % 4) + i;
    if (head >= count) continue;
    const float factor = 1.0f / total.sum[i];
    *reinterpret_cast<u32*>(out + head * kHeadDim + value_dim(tile, lane / 4)) =
        pack_bf16(total.out[i] * factor, total.out[2 + i] * factor);
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
