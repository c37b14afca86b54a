// The arithmetic of a root-mean-square norm that a whole block takes of one row.
#pragma once

#include "bf16.cuh"

namespace awqkit {

__device__ inline float sum_of_block(float value) {
  __shared__ float partial[32];
  value = sum_of_warp(value);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  value = threadIdx.x % 32 < blockDim.x / 32 ? partial[threadIdx.x % 32] : 0.0f;
  return sum_of_warp(value);
}

__device__ inline Octet normalised(const Octet& x, const Octet& weight, float scale,
                                   bool unit_offset) {
  Octet out;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    out.value[i] = unit_offset ? x.value[i] * scale * (1.0f + weight.value[i])
                               : rounded(x.value[i] * scale) * weight.value[i];
  }
  return out;
}

__device__ inline Octet sum_of_octets(const Octet& a, const Octet& b) {
  Octet out;
#pragma unroll
  for (int i = 0; i < 8; ++i) out.value[i] = rounded(a.value[i] + b.value[i]);
  return out;
}

__device__ inline void add_squares(float& squares, const Octet& octet) {
#pragma unroll
  for (int i = 0; i < 8; ++i) squares += octet.value[i] * octet.value[i];
}

}  // namespace awqkit
