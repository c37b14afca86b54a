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

// What a lane has of a record and a head tile; what there is not weighs nothing.
struct RecordPiece {
  float4 head;  // maxima, sums
  float4 out[kDimTiles];

  template <class Records>
  __device__ __forceinline__ void load(const Records& records, int at, int n) {
    const bool exists = at < records.end && records.holds(at);
    const int first = n * (1 + kDimTiles) * 32;
    head = make_float4(minus_infinity(), minus_infinity(), 0.0f, 0.0f);
    if (exists) head = records.load(at, first);
#pragma unroll
    for (int j = 0; j < kDimTiles; ++j) {
      out[j] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      if (exists) out[j] = records.load(at, first + (1 + j) * 32);
    }
  }

  __device__ __forceinline__ void add_to(Softmax& softmax, int n) const {
    const float weight[2] = {power_of_two(head.x - softmax.maximum[n][0]),
                             power_of_two(head.y - softmax.maximum[n][1])};
    softmax.sum[n][0] += head.z * weight[0];
    softmax.sum[n][1] += head.w * weight[1];
#pragma unroll
    for (int j = 0; j < kDimTiles; ++j) {
      softmax.out[n][j][0] += out[j].x * weight[0];
      softmax.out[n][j][1] += out[j].y * weight[1];
      softmax.out[n][j][2] += out[j].z * weight[0];
      softmax.out[n][j][3] += out[j].w * weight[1];
    }
  }
};

// The softmax goes on with all that `records` hold. It must have been gathered, or be reset. Records
// names them by numbers first, first + stride, … below end, of which those count that it holds.
template <class Records>
__device__ __forceinline__ void add_records(Softmax& softmax, const Records& records, int count,
                                            int lane) {
#pragma unroll
  for (int n = 0; n < kHeadTiles; ++n) {
    if (!has_heads(n, count, lane)) continue;
    float top[2] = {softmax.maximum[n][0], softmax.maximum[n][1]};
#pragma unroll 4
    for (int at = records.first; at < records.end; at += records.stride) {
      if (!records.holds(at)) continue;
      const float4 head = records.load(at, n * (1 + kDimTiles) * 32);
      top[0] = fmaxf(top[0], head.x);
      top[1] = fmaxf(top[1], head.y);
    }
    softmax.lower(n, top);
#pragma unroll 2
    for (int at = records.first; at < records.end; at += records.stride) {
      if (!records.holds(at)) continue;
      RecordPiece piece;
      piece.load(records, at, n);
      piece.add_to(softmax, n);
    }
  }
}

// Records of global memory whose loads are under way together.
constexpr int kTogether = 2;

// The same where loads take long: two records come at once, and nothing is read twice. If the softmax
// was reset there must be the first record.
template <class Records>
__device__ __forceinline__ void add_far_records(Softmax& softmax, const Records& records,
                                                int count, int lane) {
#pragma unroll
  for (int n = 0; n < kHeadTiles; ++n) {
    if (!has_heads(n, count, lane)) continue;
#pragma unroll 1
    for (int at = records.first; at < records.end; at += kTogether * records.stride) {
      RecordPiece pieces[kTogether];
      float top[2] = {softmax.maximum[n][0], softmax.maximum[n][1]};
#pragma unroll
      for (int k = 0; k < kTogether; ++k) pieces[k].load(records, at + k * records.stride, n);
#pragma unroll
      for (int k = 0; k < kTogether; ++k) {
        top[0] = fmaxf(top[0], pieces[k].head.x);
        top[1] = fmaxf(top[1], pieces[k].head.y);
      }
      softmax.lower(n, top);
#pragma unroll
      for (int k = 0; k < kTogether; ++k) pieces[k].add_to(softmax, n);
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
