// Parts of one segment's softmax that several warps or blocks have, put together in a fixed order.
#pragma once

#include "paged_decode_record.cuh"

namespace paged_decode {

// One tile of each lane's, of all that several records hold.
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

  // To the heads of a record: maxima and sums.
  __device__ __forceinline__ void rise(const float4& heads) {
    maximum[0] = fmaxf(maximum[0], heads.x);
    maximum[1] = fmaxf(maximum[1], heads.y);
  }

  // A tile of a record, and its heads, whose maxima are not above this one's.
  __device__ __forceinline__ void add(const float4& tile, const float4& heads) {
    const float weight[2] = {power_of_two(heads.x - maximum[0]), power_of_two(heads.y - maximum[1])};
    sum[0] += heads.z * weight[0];
    sum[1] += heads.w * weight[1];
    add(tile, weight);
  }

  // tile: of a record whose heads' maxima are `weight` times this one's.
  __device__ __forceinline__ void add(const float4& tile, const float (&weight)[2]) {
    out[0] += tile.x * weight[0];
    out[1] += tile.y * weight[1];
    out[2] += tile.z * weight[0];
    out[3] += tile.w * weight[1];
  }
};

// What kTogether records count for. Lane 4k + c has the weights of the records k, 8 + k, … for the
// heads of column c, so that each is found once in a warp.
template <int kTogether>
class Weights {
 public:
  static constexpr int kGroups = (kTogether + 7) / 8;

  // heads: maxima and sums of the records 8g + lane / 4 for the heads of this lane's column.
  __device__ __forceinline__ explicit Weights(const float4 (&heads)[kGroups]) {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) heads_[g] = heads[g];
  }

  // The maximum rises to theirs; total.sum becomes that of all.
  __device__ __forceinline__ void enter(TileSum& total) {
    float factor[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float top = minus_infinity();
#pragma unroll
      for (int g = 0; g < kGroups; ++g) top = fmaxf(top, i == 0 ? heads_[g].x : heads_[g].y);
#pragma unroll
      for (int distance = 4; distance < 32; distance *= 2)
        top = fmaxf(top, __shfl_xor_sync(kAll, top, distance));
      top = fmaxf(top, total.maximum[i]);
      factor[i] = power_of_two(total.maximum[i] - top);
      total.maximum[i] = top;
    }
    total.scale(factor);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float sum = 0.0f;
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        of_[g][i] = power_of_two((i == 0 ? heads_[g].x : heads_[g].y) - total.maximum[i]);
        sum += (i == 0 ? heads_[g].z : heads_[g].w) * of_[g][i];
      }
#pragma unroll
      for (int distance = 4; distance < 32; distance *= 2)
        sum += __shfl_xor_sync(kAll, sum, distance);
      total.sum[i] += sum;
    }
  }

  // Of record k, for this lane's heads.
  __device__ __forceinline__ void get(float (&weight)[2], int k) const {
#pragma unroll
    for (int i = 0; i < 2; ++i)
      weight[i] = __shfl_sync(kAll, of_[k / 8][i], 4 * (k % 8) + threadIdx.x % 4);
  }

 private:
  float4 heads_[kGroups];
  float of_[kGroups][2];
};

// A warp: the lanes' tiles `tile` of head tile n, of all records, in their order, kTogether at a time up
// to records.places(). load_all gives of each the float4 `at`, and of those that this lane weighs the
// float4 `heads_at`. needed: whether this lane has heads; of others the sum is undefined.
template <int kTogether, class Records>
__device__ __forceinline__ TileSum add_tiles(const Records& records, bool needed, int n, int tile) {
  const int heads = n * (1 + kLaneTiles) * 32, lane = threadIdx.x % 32;
  TileSum total;
  total.reset();
#pragma unroll 1
  for (int first = 0; first < records.places(); first += kTogether) {
    float4 out[kTogether], weighed[Weights<kTogether>::kGroups];
#pragma unroll
    for (float4& none : weighed) none = make_float4(minus_infinity(), minus_infinity(), 0.0f, 0.0f);
    records.load_all(out, weighed, first, heads + (1 + tile) * 32 + lane, heads + lane % 4, needed);
    Weights<kTogether> weights(weighed);
    weights.enter(total);
#pragma unroll
    for (int k = 0; k < kTogether; ++k) {
      float weight[2];
      weights.get(weight, k);
      total.add(out[k], weight);
    }
  }
  return total;
}

// record: the lane's first float4.
__device__ __forceinline__ void store_record_tile(float4* record, const TileSum& total, int n,
                                                  int tile) {
  float4* to = record + n * (1 + kLaneTiles) * 32;
  if (tile == 0)
    to[0] = make_float4(total.maximum[0], total.maximum[1], total.sum[0], total.sum[1]);
  to[(1 + tile) * 32] = make_float4(total.out[0], total.out[1], total.out[2], total.out[3]);
}

// out: as in Joined::store_output.
__device__ __forceinline__ void store_output_tile(u16* out, const TileSum& total, int n, int tile,
                                                  int count, int lane) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int head = lane_head(n, lane) + i;
    if (head >= count) continue;
    const float factor = 1.0f / total.sum[i];
    u16* at = out + head * kHeadDim + value_dim(tile_of_lane(tile, lane), lane / 4);
    *reinterpret_cast<u32*>(at) =
        pack_bf16(total.out[i] * factor, total.out[2 + i] * factor);
  }
}

}  // namespace paged_decode
