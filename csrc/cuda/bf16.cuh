// BF16 numbers without the toolkit's headers, and the two ends of a programmatic launch.
#pragma once

namespace awqkit {

using u16 = unsigned short;
using u32 = unsigned int;

__device__ __forceinline__ float widen(u16 number) { return __uint_as_float(u32(number) << 16); }

// To nearest, ties to even; NaN stays NaN.
__device__ __forceinline__ u16 narrow(float number) {
  u16 result;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result) : "f"(number));
  return result;
}

__device__ __forceinline__ float rounded(float number) { return widen(narrow(number)); }

// Two in a word, the first one low.
__device__ __forceinline__ float2 widen_two(u32 word) {
  return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
}

__device__ __forceinline__ u32 narrow_two(float first, float second) {
  return u32(narrow(first)) | u32(narrow(second)) << 16;
}

__device__ __forceinline__ float2 load_two(const u16* from) {
  return widen_two(*reinterpret_cast<const u32*>(from));
}

__device__ __forceinline__ void store_two(u16* to, float2 value) {
  *reinterpret_cast<u32*>(to) = narrow_two(value.x, value.y);
}

// Eight consecutive BF16 numbers: one 16-byte access.
struct Octet {
  float value[8];

  __device__ __forceinline__ static Octet load(const u16* from) {
    const uint4 words = *reinterpret_cast<const uint4*>(from);
    const u32 word[4] = {words.x, words.y, words.z, words.w};
    Octet octet;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      octet.value[2 * i] = __uint_as_float(word[i] << 16);
      octet.value[2 * i + 1] = __uint_as_float(word[i] & 0xffff0000u);
    }
    return octet;
  }

  __device__ __forceinline__ void store(u16* to) const {
    u32 word[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      word[i] = u32(narrow(value[2 * i])) | u32(narrow(value[2 * i + 1])) << 16;
    }
    *reinterpret_cast<uint4*>(to) = make_uint4(word[0], word[1], word[2], word[3]);
  }
};

// Until then nothing that an earlier kernel writes may be read, and nothing it reads be written.
__device__ __forceinline__ void wait_for_predecessor() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void let_successor_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// The line of memory that holds this, into L2.
__device__ __forceinline__ void prefetch(const void* at) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
}

__device__ __forceinline__ float sum_of_warp(float value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, distance);
  }
  return value;
}

}  // namespace awqkit
