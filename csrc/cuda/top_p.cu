// The least likely number that a top-p keeps, of rows of numbers whose best is 0, without an order.
//
// scaled FP32 [·, vocab], no number above 0; rows int64 [grid]: which of its rows; top_p FP64 [grid],
// below 1; cutoff FP32 [grid]. A number x is kept where the mass of all larger ones, the sum of
// their exp, lies below top_p times the mass of the whole row; equal ones are kept together. So the
// least magnitude kept is the largest M with mass(|x| < M) < limit, for which the bits of FP32
// numbers, in their order those of the magnitudes, are searched from the top, three at a time.
//
// Masses are added in fixed point, 40 bits behind the point: the order of a sum changes nothing.
//
// Launch: grid (rows), block (a multiple of 32 up to 1024), no dynamic shared memory.
#include "bf16.cuh"

namespace {

using awqkit::u32;
using u64 = unsigned long long;

constexpr int kBits = 3;
constexpr int kBounds = (1 << kBits) - 1;
constexpr int kTopShift = 30;
constexpr u32 kMagnitude = 0x7fffffffu;
constexpr float kOne = 1099511627776.0f;  // 2^40

__device__ __forceinline__ u64 mass(float x) { return __float2ull_rn(expf(x) * kOne); }

__device__ __forceinline__ u64 sum_of_warp(u64 value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  }
  return value;
}

// Every value becomes its sum over all threads of the block.
template <int kCount>
__device__ void sum_over_block(u64 (&values)[kCount]) {
  __shared__ u64 of_warps[32][kCount];
  __shared__ u64 of_block[kCount];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const u64 sum = sum_of_warp(values[i]);
    if (lane == 0) of_warps[warp][i] = sum;
  }
  __syncthreads();
  for (int i = warp; i < kCount; i += warps) {
    const u64 sum = sum_of_warp(lane < warps ? of_warps[lane][i] : 0ull);
    if (lane == 0) of_block[i] = sum;
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kCount; ++i) values[i] = of_block[i];
}

}  // namespace

extern "C" __global__ void __launch_bounds__(1024)
    top_p(const float* scaled, const long long* rows, const double* top_p, float* cutoff,
          int vocab) {
  const float* x = scaled + rows[blockIdx.x] * vocab;
  u64 total[1] = {0};
#pragma unroll 4
  for (int i = threadIdx.x; i < vocab; i += blockDim.x) total[0] += mass(x[i]);
  sum_over_block(total);
  const double limit = top_p[blockIdx.x] * static_cast<double>(total[0]);

  u32 least = 0;   // A magnitude that is kept …
  u64 before = 0;  // … and the mass of all smaller ones.
  for (int shift = kTopShift; shift >= 0; shift -= kBits) {
    // below[j]: of the magnitudes from `least` to under least + ((j + 1) << shift).
    u64 below[kBounds] = {};
#pragma unroll 4
    for (int i = threadIdx.x; i < vocab; i += blockDim.x) {
      const float number = x[i];
      const u32 magnitude = __float_as_uint(number) & kMagnitude;
      const u32 part = (magnitude - least) >> shift;
      if (magnitude < least || part >= kBounds) continue;
      const u64 own = mass(number);
#pragma unroll
      for (int j = 0; j < kBounds; ++j) below[j] += part <= u32(j) ? own : 0ull;
    }
    sum_over_block(below);
    u64 added = 0;
    u32 kept = 0;
#pragma unroll
    for (int j = 0; j < kBounds; ++j) {
      if (static_cast<double>(before + below[j]) < limit) {
        kept = j + 1;
        added = below[j];
      }
    }
    least += kept << shift;
    before += added;
  }
  if (threadIdx.x == 0) cutoff[blockIdx.x] = -__uint_as_float(least);
}
