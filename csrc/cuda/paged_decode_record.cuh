// What a warp or a block has of a segment's softmax, as others take it over.
//
// A record holds, for each lane side by side, its columns' maxima and sums and its outputs, all in
// FP32: [kRecordQuads][32] float4. Lanes without heads leave theirs out. Streams are joined in it: the
// columns of both are the same heads then, and lanes of either have half of the tiles.
#pragma once

#include "paged_decode_softmax.cuh"

namespace paged_decode {

constexpr int kLaneTiles = kDimTiles / kStreams;  // of the output, in each lane of a record
constexpr int kRecordQuads = kHeadTiles * (1 + kLaneTiles);
constexpr int kRecordFloats = kRecordQuads * 32 * 4;
static_assert(kDimTiles % kStreams == 0);

// The first of the two heads of a lane's columns.
__device__ __forceinline__ int lane_head(int n, int lane) {
  return 8 * n + 2 * (lane % 4) % (8 / kStreams);
}

__device__ __forceinline__ bool has_heads(int n, int count, int lane) {
  return lane_head(n, lane) < count;
}

// Which tile of the output is a lane's in a record.
__device__ __forceinline__ int tile_of_lane(int place, int lane) {
  return kStreams == 1 ? place : place + lane % 4 / 2 * kLaneTiles;
}

// A softmax as a record holds it.
struct Joined {
  float out[kHeadTiles][kLaneTiles][4];  // as Softmax has them
  float maximum[kHeadTiles][2];
  float sum[kHeadTiles][2];

  // Of nothing yet.
  __device__ __forceinline__ Joined() {
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) maximum[n][i] = kLowest, sum[n][i] = 0.0f;
#pragma unroll
      for (int j = 0; j < kLaneTiles; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) out[n][j][e] = 0.0f;
    }
  }

  // Of a gathered softmax. Where it has two streams, lanes hand each other the tiles they do not keep.
  __device__ __forceinline__ explicit Joined(const Softmax& softmax) {
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n) {
      float factor[2] = {1.0f, 1.0f};
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        maximum[n][i] = softmax.maximum[n][i], sum[n][i] = softmax.sum[n][i];
        if constexpr (kStreams == 1) continue;
        maximum[n][i] = fmaxf(maximum[n][i], of_other_stream(maximum[n][i]));
        factor[i] = power_of_two(softmax.maximum[n][i] - maximum[n][i]);
        sum[n][i] *= factor[i];
        sum[n][i] += of_other_stream(sum[n][i]);
      }
#pragma unroll
      for (int j = 0; j < kLaneTiles; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float first = softmax.out[n][j][e];
          if constexpr (kStreams == 1) {
            out[n][j][e] = first;
          } else {
            const float second = softmax.out[n][j + kLaneTiles][e];
            const bool keeps_second = threadIdx.x % 4 >= 2;
            out[n][j][e] = (keeps_second ? second : first) * factor[e % 2] +
                           of_other_stream((keeps_second ? first : second) * factor[e % 2]);
          }
        }
    }
  }

  // What a record holds (its lane's first float4).
  __device__ __forceinline__ void add(const float4* record, int count, int lane) {
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n) {
      if (!has_heads(n, count, lane)) continue;
      const float4* from = record + n * (1 + kLaneTiles) * 32;
      float4 tiles[kLaneTiles];
      const float4 heads = from[0];
#pragma unroll
      for (int j = 0; j < kLaneTiles; ++j) tiles[j] = from[(1 + j) * 32];
      const float found[2][2] = {{heads.x, heads.y}, {heads.z, heads.w}};
      float own[2], weight[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float top = fmaxf(maximum[n][i], found[0][i]);
        own[i] = power_of_two(maximum[n][i] - top), weight[i] = power_of_two(found[0][i] - top);
        maximum[n][i] = top;
        sum[n][i] = sum[n][i] * own[i] + found[1][i] * weight[i];
      }
#pragma unroll
      for (int j = 0; j < kLaneTiles; ++j) {
        const float tile[4] = {tiles[j].x, tiles[j].y, tiles[j].z, tiles[j].w};
#pragma unroll
        for (int e = 0; e < 4; ++e)
          out[n][j][e] = out[n][j][e] * own[e % 2] + tile[e] * weight[e % 2];
      }
    }
  }

  // record: the lane's first float4, in shared or global memory.
  __device__ __forceinline__ void store(float4* record, int count, int lane) const {
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n) {
      if (!has_heads(n, count, lane)) continue;
      float4* to = record + n * (1 + kLaneTiles) * 32;
      to[0] = make_float4(maximum[n][0], maximum[n][1], sum[n][0], sum[n][1]);
#pragma unroll
      for (int j = 0; j < kLaneTiles; ++j)
        to[(1 + j) * 32] =
            make_float4(out[n][j][0], out[n][j][1], out[n][j][2], out[n][j][3]);
    }
  }

  // The output, to [heads, kHeadDim] of the row, from the group's first head on.
  __device__ __forceinline__ void store_output(u16* to, int count, int lane) const {
    constexpr int kPair = kRunTiles % 2 == 0 && kLaneTiles % 2 == 0 ? 2 : 1;
    constexpr int kRun = kLaneTiles % kRunTiles == 0 ? kRunTiles : kPair;
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int head = lane_head(n, lane) + i;
        if (head >= count) continue;
        const float factor = 1.0f / sum[n][i];
#pragma unroll
        for (int first = 0; first < kLaneTiles; first += kRun) {
          u32 run[kRun];
#pragma unroll
          for (int k = 0; k < kRun; ++k)
            run[k] = pack_bf16(out[n][first + k][i] * factor, out[n][first + k][2 + i] * factor);
          u16* at = to + head * kHeadDim + value_dim(tile_of_lane(first, lane), lane / 4);
          if constexpr (kRun == 4)
            *reinterpret_cast<uint4*>(at) = make_uint4(run[0], run[1], run[2], run[3]);
          else if constexpr (kRun == 2)
            *reinterpret_cast<uint2*>(at) = make_uint2(run[0], run[1]);
          else
            *reinterpret_cast<u32*>(at) = run[0];
        }
      }
  }
};

}  // namespace paged_decode
