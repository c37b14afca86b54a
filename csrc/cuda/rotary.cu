// Rotary embedding in place on heads of BF16 numbers, after an RMS norm of each head where asked.
//
// Row t of x holds `heads` heads of head_dim numbers from its start on, the first query_heads of
// them queries, the others keys; rows lie row_stride numbers apart. Within a head the pairs
// (i, i + rotary_dim/2) turn by the angles of token t; the rest of the head stays. cos and sin are
// FP32 [rows, rotary_dim] with equal halves. The norms' weights are BF16 [head_dim]; null: no norm.
// The rotation is computed in FP32 and rounded once; the norm is rounded as rms_norm.cu does.
//
// A warp takes heads_a_warp heads of one row and keeps the angles meanwhile.
// Launch: grid (rows, ceil(heads / (warps * heads_a_warp))), block (32 * warps), no dynamic shared
// memory. rotary_dim is a multiple of 4 up to 256; head_dim, row_stride are even; x and the norms'
// weights are 4-byte aligned, cos and sin 8-byte aligned.
#include "bf16.cuh"

using namespace awqkit;

// A lane's pairs: two neighbouring ones from 2 * (lane + 32 j) on, j < kSteps.
constexpr int kSteps = 2;

__device__ __forceinline__ float2 load_two(const u16* from) {
  const u32 word = *reinterpret_cast<const u32*>(from);
  return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
}

__device__ __forceinline__ void store_two(u16* to, float2 value) {
  *reinterpret_cast<u32*>(to) = u32(narrow(value.x)) | u32(narrow(value.y)) << 16;
}

struct Angles {
  float2 cos[kSteps], sin[kSteps];

  __device__ Angles(const float* cosines, const float* sines, int half, int lane) {
#pragma unroll
    for (int j = 0; j < kSteps; ++j) {
      const int i = 2 * (lane + 32 * j);
      if (i >= half) continue;
      cos[j] = *reinterpret_cast<const float2*>(cosines + i);
      sin[j] = *reinterpret_cast<const float2*>(sines + i);
    }
  }
};

struct HeadNorm {
  const u16* weight;
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
__device__ float scale_of(const u16* head, int head_dim, int half, int lane, float eps) {
  float squares = 0.0f;
  const auto add = [&](float2 two) { squares += two.x * two.x + two.y * two.y; };
  for (int i = 2 * lane; i < half; i += 64) {
    add(load_two(head + i));
    add(load_two(head + i + half));
  }
  for (int i = 2 * half + 2 * lane; i < head_dim; i += 64) add(load_two(head + i));
  return rsqrtf(sum_of_warp(squares) / head_dim + eps);
}

__device__ void turn(u16* head, const Angles& angles, const HeadNorm& norm, float scale, int half,
                     int lane) {
#pragma unroll
  for (int j = 0; j < kSteps; ++j) {
    const int i = 2 * (lane + 32 * j);
    if (i >= half) continue;
    const float2 first = norm.apply(load_two(head + i), i, scale);
    const float2 second = norm.apply(load_two(head + i + half), i + half, scale);
    const float2 c = angles.cos[j], s = angles.sin[j];
    store_two(head + i, make_float2(first.x * c.x - second.x * s.x, first.y * c.y - second.y * s.y));
    store_two(head + i + half,
              make_float2(second.x * c.x + first.x * s.x, second.y * c.y + first.y * s.y));
  }
}

extern "C" __global__ void rotary(u16* x, const float* cos, const float* sin,
                                  const u16* query_norm, const u16* key_norm, int row_stride,
                                  int heads, int query_heads, int head_dim, int rotary_dim,
                                  int heads_a_warp, float eps, int unit_offset) {
  const int lane = threadIdx.x % 32, half = rotary_dim / 2;
  const int warp = blockIdx.y * (blockDim.x / 32) + threadIdx.x / 32;
  const long long row = blockIdx.x;
  let_successor_start();
  wait_for_predecessor();

  const Angles angles(cos + row * rotary_dim, sin + row * rotary_dim, half, lane);
  const int end = min(heads, (warp + 1) * heads_a_warp);
  for (int index = warp * heads_a_warp; index < end; ++index) {
    u16* head = x + row * row_stride + static_cast<long long>(index) * head_dim;
    const HeadNorm norm{index < query_heads ? query_norm : key_norm, unit_offset != 0};
    const bool normed = norm.weight != nullptr;
    const float scale = normed ? scale_of(head, head_dim, half, lane, eps) : 1.0f;
    turn(head, angles, norm, scale, half, lane);
    for (int i = rotary_dim + 2 * lane; normed && i < head_dim; i += 64)
      store_two(head + i, norm.apply(load_two(head + i), i, scale));
  }
}
