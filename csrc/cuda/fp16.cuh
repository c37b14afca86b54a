// FP16 numbers without the toolkit's headers.
#pragma once

namespace awqkit {

// To nearest, ties to even.
__device__ __forceinline__ unsigned short fp16_bits(float number) {
  unsigned short result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result) : "f"(number));
  return result;
}

__device__ __forceinline__ float widen_fp16(unsigned short bits) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(bits));
  return result;
}

}  // namespace awqkit
