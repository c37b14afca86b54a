// The numbers of one head in FP32, and the frame that keys and queries lie in.
//
// k' = H((k - m) / c), q' = H(q * c); H is the normalised Walsh-Hadamard transform of the whole head,
// or of blocks of 32 where its size is no power of two. Products and sums round one by one, as torch
// computes them, so nothing here may be contracted.
#pragma once
#include "head_layout.cuh"

namespace awqkit {

// FP32 [kv_heads, head_dim] of one layer; null: left out.
struct Frame {
  const float *mean, *channel_scale;
  bool rotated;

  __device__ __forceinline__ bool moves_queries() const {
    return channel_scale != nullptr || rotated;
  }
  __device__ __forceinline__ bool moves_keys() const { return mean != nullptr || moves_queries(); }
};

template <int kHeadDim>
struct HeadVector {
  using Layout = HeadLayout<kHeadDim>;
  using Words = HeadWords<kHeadDim>;
  static constexpr int kNumbers = Layout::kNumbers;
  float number[kNumbers];

  __device__ __forceinline__ explicit HeadVector(const Words& words) {
#pragma unroll
    for (int j = 0; j < Layout::kWords; ++j) {
      const float2 two = widen_two(words.word[j]);
      number[2 * j] = two.x;
      number[2 * j + 1] = two.y;
    }
  }

  __device__ __forceinline__ Words words() const {
    Words words;
#pragma unroll
    for (int j = 0; j < Layout::kWords; ++j)
      words.word[j] = narrow_two(number[2 * j], number[2 * j + 1]);
    return words;
  }

  // mean, channel_scale: of the head, or null.
  __device__ __forceinline__ void lay_key(const float* mean, const float* channel_scale,
                                          bool rotated, int lane) {
    const HeadVector means(mean, lane), scales(channel_scale, lane);
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) {
      if (mean != nullptr) number[i] = __fsub_rn(number[i], means.number[i]);
      if (channel_scale != nullptr) number[i] = __fdiv_rn(number[i], scales.number[i]);
    }
    if (rotated) hadamard(lane);
  }

  __device__ __forceinline__ void lay_query(const float* channel_scale, bool rotated, int lane) {
    const HeadVector scales(channel_scale, lane);
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) {
      if (channel_scale != nullptr) number[i] = __fmul_rn(number[i], scales.number[i]);
    }
    if (rotated) hadamard(lane);
  }

 private:
  // Of a vector of the frame; null: nothing.
  __device__ __forceinline__ HeadVector(const float* vector, int lane) {
    if (vector == nullptr) return;
#pragma unroll
    for (int j = 0; j < Layout::kWords; ++j) {
      const float2 two = *reinterpret_cast<const float2*>(vector + Layout::element(j, lane));
      number[2 * j] = two.x;
      number[2 * j + 1] = two.y;
    }
  }

  // Neighbours first, then ever farther numbers: sums round in that order.
  __device__ __forceinline__ void hadamard(int lane) {
    cross(1);
    if constexpr (Layout::kHalves) cross(2);
#pragma unroll
    for (int distance = 1; distance < Layout::kLanes; distance *= 2) {
#pragma unroll
      for (int i = 0; i < kNumbers; ++i) {
        const float other = __shfl_xor_sync(kWarp, number[i], distance);
        number[i] = lane & distance ? __fsub_rn(other, number[i]) : __fadd_rn(number[i], other);
      }
    }
    if constexpr (Layout::kHalves) cross(kNumbers / 2);
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) number[i] = __fmul_rn(number[i], norm());
  }

  // Numbers of one lane with those `distance` behind them.
  __device__ __forceinline__ void cross(int distance) {
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) {
      if (i & distance) continue;
      const float left = number[i], right = number[i + distance];
      number[i] = __fadd_rn(left, right);
      number[i + distance] = __fsub_rn(left, right);
    }
  }

  // 1 / sqrt of the block's size.
  __device__ static constexpr float norm() {
    return kHeadDim == 64    ? 0.125f
           : kHeadDim == 128 ? 0.08838834764831845f
           : kHeadDim == 256 ? 0.0625f
                             : 0.17677669529663687f;
  }
};

}  // namespace awqkit
