// Codes to BF16 fragments of mma.m16n8k16 (and of one warp's share of a wgmma m64k16).
//
// A code word holds the 8 codes of one k16 step: nibbles p and p + 4 are the low and the high half
// of fragment register p. 0x4300 | code is 128 + code in BF16, exactly; 128 + z is exact too, and
// so is their difference, so that the only rounding is the product with the scale.
#pragma once

namespace w4 {

using u32 = unsigned int;

// Scale and negative offset of the two rows r and r + 8 that a lane holds, each as a BF16 pair.
struct RowParams {
  u32 scale[2];
  u32 minus_offset[2];
};

// word: FP16 bits of the scale (low half), BF16 bits of 128 + z (high half).
__device__ __forceinline__ void unpack_params(u32 word, u32& scale, u32& minus_offset) {
  asm("{\n\t.reg .b16 low, high;\n\t.reg .f32 wide;\n\t"
      "mov.b32 {low, high}, %1;\n\t"
      "cvt.f32.f16 wide, low;\n\t"
      "cvt.rn.bf16x2.f32 %0, wide, wide;\n\t}"
      : "=r"(scale)
      : "r"(word));
  minus_offset = __byte_perm(word, 0, 0x3232) ^ 0x80008000u;
}

__device__ __forceinline__ RowParams unpack_row_params(uint2 words) {
  RowParams params;
  unpack_params(words.x, params.scale[0], params.minus_offset[0]);
  unpack_params(words.y, params.scale[1], params.minus_offset[1]);
  return params;
}

__device__ __forceinline__ u32 fma_bf16x2(u32 a, u32 b, u32 c) {
  u32 d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

// (codes & 0x000f000f) | 0x43004300 in one instruction, which takes one immediate: the other
// constant must look like a variable.
__device__ __forceinline__ u32 biased_pair(u32 codes, u32 magic) {
  u32 pair;
  asm("lop3.b32 %0, %1, 0x000f000f, %2, 0xea;" : "=r"(pair) : "r"(codes), "r"(magic));
  return pair;
}

__device__ __forceinline__ u32 opaque_magic() {
  u32 magic;
  asm volatile("mov.b32 %0, 0x43004300;" : "=r"(magic));
  return magic;
}

// The four registers of one k16 step; odd registers belong to row r + 8.
__device__ __forceinline__ void dequantize(u32 codes, const RowParams& params, u32 magic,
                                           u32 (&fragment)[4]) {
  constexpr u32 kOnes = 0x3f803f80u;
  constexpr u32 kMinusZeros = 0x80008000u;
#pragma unroll
  for (int p = 0; p < 4; ++p) {
    const u32 raw = biased_pair(codes >> (4 * p), magic);
    const u32 difference = fma_bf16x2(raw, kOnes, params.minus_offset[p % 2]);
    fragment[p] = fma_bf16x2(difference, params.scale[p % 2], kMinusZeros);
  }
}

// From subnormal numbers, whose bits are a number: 0x00XX is XX * 2^-133 in BF16, normal from 0x80 on
// and yet in line. Both nibbles of a byte need no shift, then, and no magic number, and the fused
// multiplication brings them to (code - z) / 64, exactly. What they are multiplied with wants
// kCodeScale yet.
constexpr float kCodeScale = 64.0f;

// Of rows r and r + 8: scales in FP32, and offset to a code that is read as a subnormal number.
struct ExactParams {
  float scale[2];
  u32 minus_offset[2];
};

__device__ __forceinline__ float scale_of(u32 word) {
  float scale;
  asm("{\n\t.reg .b16 low, high;\n\tmov.b32 {low, high}, %1;\n\tcvt.f32.f16 %0, low;\n\t}"
      : "=f"(scale)
      : "r"(word));
  return scale;
}

// -(128 + z) / 64 + 2, twice.
__device__ __forceinline__ u32 small_offset_of(u32 word) {
  return fma_bf16x2(__byte_perm(word, 0, 0x3232) ^ 0x80008000u, 0x3c803c80u, 0x40004000u);
}

__device__ __forceinline__ ExactParams unpack_exact_params(uint2 words) {
  return {{scale_of(words.x), scale_of(words.y)},
          {small_offset_of(words.x), small_offset_of(words.y)}};
}

// The four registers of one k16 step as (code - z) / 64.
__device__ __forceinline__ void subtract_zeros(u32 codes, const ExactParams& params,
                                               u32 (&fragment)[4]) {
  constexpr u32 kLow = 0x7f007f00u;   // 2^127
  constexpr u32 kHigh = 0x7d007d00u;  // 2^123
  const u32 upper = codes >> 8;
  fragment[0] = fma_bf16x2(codes & 0x000f000fu, kLow, params.minus_offset[0]);
  fragment[1] = fma_bf16x2(codes & 0x00f000f0u, kHigh, params.minus_offset[1]);
  fragment[2] = fma_bf16x2(upper & 0x000f000fu, kLow, params.minus_offset[0]);
  fragment[3] = fma_bf16x2(upper & 0x00f000f0u, kHigh, params.minus_offset[1]);
}

}  // namespace w4
