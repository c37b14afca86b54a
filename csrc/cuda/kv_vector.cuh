// The numbers of one head in the registers of a warp, and the frame that keys and queries lie in.
//
// k' = H((k - m) / c), q' = H(q * c); H is the normalised Walsh-Hadamard transform of the whole head,
// or of blocks of 32 where its size is no power of two. Products and sums round one by one, as torch
// computes them, so nothing here may be contracted.
#pragma once
#include "bf16.cuh"

namespace awqkit {

// Part m of lane l is element l + 32 m.
template <int kHeadDim>
struct HeadVector {
  static_assert(kHeadDim % 32 == 0, "a lane has equally many elements as any other");
  static constexpr int kParts = kHeadDim / 32;
  float part[kParts];

  __device__ __forceinline__ HeadVector(const u16* head, int lane) {
#pragma unroll
    for (int m = 0; m < kParts; ++m) part[m] = widen(head[lane + 32 * m]);
  }

  __device__ __forceinline__ void store(u16* head, int lane) const {
#pragma unroll
    for (int m = 0; m < kParts; ++m) head[lane + 32 * m] = narrow(part[m]);
  }

  // mean, channel_scale: of the head, or null.
  __device__ __forceinline__ void lay_key(const float* mean, const float* channel_scale,
                                          bool rotated, int lane) {
#pragma unroll
    for (int m = 0; m < kParts; ++m) {
      if (mean != nullptr) part[m] = __fsub_rn(part[m], mean[lane + 32 * m]);
      if (channel_scale != nullptr) part[m] = __fdiv_rn(part[m], channel_scale[lane + 32 * m]);
    }
    if (rotated) hadamard(lane);
  }

  __device__ __forceinline__ void lay_query(const float* channel_scale, bool rotated, int lane) {
#pragma unroll
    for (int m = 0; m < kParts; ++m) {
      if (channel_scale != nullptr) part[m] = __fmul_rn(part[m], channel_scale[lane + 32 * m]);
    }
    if (rotated) hadamard(lane);
  }

 private:
  static constexpr bool kWhole = (kHeadDim & (kHeadDim - 1)) == 0;

  __device__ __forceinline__ void hadamard(int lane) {
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
#pragma unroll
      for (int m = 0; m < kParts; ++m) {
        const float other = __shfl_xor_sync(0xffffffffu, part[m], distance);
        part[m] = lane & distance ? __fsub_rn(other, part[m]) : __fadd_rn(part[m], other);
      }
    }
#pragma unroll
    for (int distance = 1; kWhole && distance < kParts; distance *= 2) {
#pragma unroll
      for (int m = 0; m < kParts; ++m) {
        if (m & distance) continue;
        const float left = part[m], right = part[m + distance];
        part[m] = __fadd_rn(left, right);
        part[m + distance] = __fsub_rn(left, right);
      }
    }
#pragma unroll
    for (int m = 0; m < kParts; ++m) part[m] = __fmul_rn(part[m], norm());
  }

  // 1 / sqrt of the block's size.
  __device__ static constexpr float norm() {
    return !kWhole            ? 0.17677669529663687f
           : kHeadDim == 32   ? 0.17677669529663687f
           : kHeadDim == 64   ? 0.125f
           : kHeadDim == 128  ? 0.08838834764831845f
                              : 0.0625f;
  }
};

}  // namespace awqkit
