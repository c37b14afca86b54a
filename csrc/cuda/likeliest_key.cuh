// Tokens as numbers of which the largest is the choice: of the largest logit, of equal ones the lowest
// token. One GPU and several choose by the same numbers.
#pragma once

#include "bf16.cuh"

namespace awqkit {

using u64 = unsigned long long;

// Orders as the numbers do; adding 0 makes one of the two zeros. 0 is below all but one NaN.
__device__ __forceinline__ u32 ordered(float value) {
  const u32 bits = __float_as_uint(value + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ u64 key_of(u32 ordered_value, u32 token) {
  return u64(ordered_value) << 32 | (0xffffffffu - token);
}

__device__ __forceinline__ u32 token_of(u64 key) { return 0xffffffffu - u32(key); }

__device__ __forceinline__ u64 max_of_warp(u64 key) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    const u64 other = __shfl_xor_sync(0xffffffffu, key, distance);
    key = other > key ? other : key;
  }
  return key;
}

}  // namespace awqkit
