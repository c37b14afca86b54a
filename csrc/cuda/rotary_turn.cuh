// One head of BF16 numbers, normed where asked and turned in place by a warp.
//
// Within a head the pairs (i, i + rotary_dim/2) turn by the angles of its token; the rest of the
// head stays. cos and sin are FP32 with equal halves. The rotation is computed in FP32 and rounded
// once; the norm is rounded as rms_norm.cu does. rotary_dim is a multiple of 4 up to 256, head_dim
// even; heads and the norms' weights are 4-byte aligned, cos and sin 8-byte aligned.
#pragma once
#include "bf16.cuh"

namespace awqkit {

// A lane's pairs: two neighbouring ones from 2 * (lane + 32 j) on, j < kTurnSteps.
constexpr int kTurnSteps = 2;

// What becomes of the two ends of a pair. Written out, so that all who turn round alike.
__device__ __forceinline__ float turned_first(float first, float second, float c, float s) {
  return __fmaf_rn(first, c, -__fmul_rn(second, s));
}
__device__ __forceinline__ float turned_second(float first, float second, float c, float s) {
  return __fmaf_rn(second, c, __fmul_rn(first, s));
}

// A lane's share of the angles of one token.
struct Angles {
  float2 cos[kTurnSteps], sin[kTurnSteps];
  int half;

  __device__ Angles(const float* cosines, const float* sines, int half, int lane) : half(half) {
#pragma unroll
    for (int j = 0; j < kTurnSteps; ++j) {
      const int i = 2 * (lane + 32 * j);
      if (i >= half) continue;
      cos[j] = *reinterpret_cast<const float2*>(cosines + i);
      sin[j] = *reinterpret_cast<const float2*>(sines + i);
    }
  }
};

// weight: BF16 [head_dim]; null: no norm.
struct HeadNorm {
  const u16* weight;
  float eps;
  bool unit_offset;

  __device__ float apply(float x, float factor, float scale) const {
    return unit_offset ? rounded(x * scale * (1.0f + factor))
                       : rounded(rounded(x * scale) * factor);
  }
  __device__ float2 apply(float2 x, int i, float scale) const {
    if (weight == nullptr) return x;
    const float2 factor = load_two(weight + i);
    return make_float2(apply(x.x, factor.x, scale), apply(x.y, factor.y, scale));
  }
};

// 1 / rms of a head. Every lane reads just the numbers that it will write later.
__device__ __forceinline__ float scale_of(const u16* head, int head_dim, int half, int lane,
                                          float eps) {
  float squares = 0.0f;
  const auto add = [&](float2 two) { squares += two.x * two.x + two.y * two.y; };
  for (int i = 2 * lane; i < half; i += 64) {
    add(load_two(head + i));
    add(load_two(head + i + half));
  }
  for (int i = 2 * half + 2 * lane; i < head_dim; i += 64) add(load_two(head + i));
  return rsqrtf(sum_of_warp(squares) / head_dim + eps);
}

__device__ __forceinline__ void turn_head(u16* head, const Angles& angles, const HeadNorm& norm,
                                          int head_dim, int lane) {
  const int half = angles.half;
  const bool normed = norm.weight != nullptr;
  const float scale = normed ? scale_of(head, head_dim, half, lane, norm.eps) : 1.0f;
#pragma unroll
  for (int j = 0; j < kTurnSteps; ++j) {
    const int i = 2 * (lane + 32 * j);
    if (i >= half) continue;
    const float2 first = norm.apply(load_two(head + i), i, scale);
    const float2 second = norm.apply(load_two(head + i + half), i + half, scale);
    const float2 c = angles.cos[j], s = angles.sin[j];
    store_two(head + i, make_float2(turned_first(first.x, second.x, c.x, s.x),
                                    turned_first(first.y, second.y, c.y, s.y)));
    store_two(head + i + half, make_float2(turned_second(first.x, second.x, c.x, s.x),
                                           turned_second(first.y, second.y, c.y, s.y)));
  }
  for (int i = 2 * half + 2 * lane; normed && i < head_dim; i += 64)
    store_two(head + i, norm.apply(load_two(head + i), i, scale));
}

}  // namespace awqkit
