// Thin wrappers of the PTX of paged_decode.cu, all of it known to sm_80.
#pragma once

#include "async_copies.cuh"
#include "bf16.cuh"

namespace paged_decode {

using awqkit::commit_copies;
using awqkit::copy_async;
using awqkit::u16;
using awqkit::u32;
using awqkit::wait_for_copies;

__device__ __forceinline__ u32 shared_address(const void* pointer) {
  return static_cast<u32>(__cvta_generic_to_shared(pointer));
}

// c += a · b, BF16 operands, FP32 accumulators, m16n8k16.
__device__ __forceinline__ void multiply(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Transposes an 8 x 8 matrix of 16-bit values that a warp holds, two of a row in each lane.
__device__ __forceinline__ u32 transposed(u32 pair) {
  u32 result;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(pair));
  return result;
}

__device__ __forceinline__ u32 pack_bf16(float low, float high) {
  u32 pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

// a · b + c on pairs of BF16.
__device__ __forceinline__ u32 multiply_add_bf16(u32 a, u32 b, u32 c) {
  u32 pair;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(pair) : "r"(a), "r"(b), "r"(c));
  return pair;
}

// Returns what was there. What this thread knows to be written is visible to whoever sees the sum, and
// what they knew to this thread.
__device__ __forceinline__ int add_in_order(int* address, int number) {
  int before;
  asm volatile("atom.add.acq_rel.gpu.global.s32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(address), "r"(number)
               : "memory");
  return before;
}

// From L2, which is asked to keep it: what every layer of a step reads again.
__device__ __forceinline__ uint4 load_and_keep(const uint4* from) {
  uint4 quad;
  asm volatile("{\n\t.reg .b64 keep;\n\t"
               "createpolicy.fractional.L2::evict_last.b64 keep, 1.0;\n\t"
               "ld.global.cg.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], keep;\n\t}"
               : "=r"(quad.x), "=r"(quad.y), "=r"(quad.z), "=r"(quad.w)
               : "l"(from)
               : "memory");
  return quad;
}

// Asks the compiler to keep a number that it would rather find again in every step, if that leaves it
// registers enough.
__device__ __forceinline__ void keep(u32& number) {
  if constexpr (PD_WARPS <= 12) asm volatile("" : "+r"(number));
}

// What a predecessor wrote, for a thread that has waited for it. Other warps of the multiprocessor that
// want the same find it in L1.
__device__ __forceinline__ uint2 load_pair(const u16* from) {
  uint2 pair;
  asm volatile("ld.global.v2.u32 {%0, %1}, [%2];"
               : "=r"(pair.x), "=r"(pair.y)
               : "l"(from)
               : "memory");
  return pair;
}

__device__ __forceinline__ float minus_infinity() { return __uint_as_float(0xff800000u); }

__device__ __forceinline__ float power_of_two(float exponent) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(exponent));
  return result;
}

// The two FP16 numbers of a word.
__device__ __forceinline__ float2 widen_half_pair(u32 pair) {
  float2 result;
  asm("{\n\t.reg .b16 low, high;\n\tmov.b32 {low, high}, %2;\n\t"
      "cvt.f32.f16 %0, low;\n\tcvt.f32.f16 %1, high;\n\t}"
      : "=f"(result.x), "=f"(result.y)
      : "r"(pair));
  return result;
}

}  // namespace paged_decode
