// wgmma m64 x kTokens x k16 with A (weights) in registers and B (tokens) in shared memory,
// accumulators in FP32. W4_TOKENS (16, 32, 48, 64, 96, 128 or 256) fixes the instruction's shape.
#pragma once

#include "w4_prefill_wgmma_base.cuh"

namespace w4_prefill {

// asm constraints of register lists.
#define W4_F4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define W4_F16(d, i) W4_F4(d, i), W4_F4(d, i + 4), W4_F4(d, i + 8), W4_F4(d, i + 12)
#define W4_REGISTERS_HALF(d) W4_F4(d, 0), W4_F4(d, 4)
#define W4_REGISTERS_0(d) W4_F16(d, 0)
#define W4_REGISTERS_1(d) W4_REGISTERS_0(d), W4_F16(d, 16)
#define W4_REGISTERS_1_HALF(d) W4_REGISTERS_0(d), W4_F4(d, 16), W4_F4(d, 20)
#define W4_REGISTERS_2(d) W4_REGISTERS_1(d), W4_F16(d, 32)
#define W4_REGISTERS_3(d) W4_REGISTERS_2(d), W4_F16(d, 48)
#define W4_REGISTERS_4(d) W4_REGISTERS_3(d), W4_F16(d, 64)
#define W4_REGISTERS_5(d) W4_REGISTERS_4(d), W4_F16(d, 80)
#define W4_REGISTERS_6(d) W4_REGISTERS_5(d), W4_F16(d, 96)
#define W4_REGISTERS_7(d) W4_REGISTERS_6(d), W4_F16(d, 112)

#define W4_WGMMA(adds, shape, names, registers, a0, a1, a2, a3, b)                       \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" shape "k16.f32.bf16.bf16 {" names     \
               "}, {" a0 "," a1 "," a2 "," a3 "}, " b ", " adds ", 1, 1, 0;"             \
               : registers                                                               \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(tokens))

// The instruction for W4_TOKENS. adds: "1" to d, "0" instead of what d holds.
#if W4_TOKENS == 16
#define W4_MULTIPLY(adds) \
  W4_WGMMA(adds, "16", W4_NAMES_HALF, W4_REGISTERS_HALF(d), "%8", "%9", "%10", "%11", "%12")
#elif W4_TOKENS == 32
#define W4_MULTIPLY(adds) \
  W4_WGMMA(adds, "32", W4_NAMES_0, W4_REGISTERS_0(d), "%16", "%17", "%18", "%19", "%20")
#elif W4_TOKENS == 48
#define W4_MULTIPLY(adds) \
  W4_WGMMA(adds, "48", W4_NAMES_1_HALF, W4_REGISTERS_1_HALF(d), "%24", "%25", "%26", "%27", "%28")
#elif W4_TOKENS == 64
#define W4_MULTIPLY(adds) \
  W4_WGMMA(adds, "64", W4_NAMES_1, W4_REGISTERS_1(d), "%32", "%33", "%34", "%35", "%36")
#elif W4_TOKENS == 96
#define W4_MULTIPLY(adds) \
  W4_WGMMA(adds, "96", W4_NAMES_2, W4_REGISTERS_2(d), "%48", "%49", "%50", "%51", "%52")
#elif W4_TOKENS == 128
#define W4_MULTIPLY(adds) \
  W4_WGMMA(adds, "128", W4_NAMES_3, W4_REGISTERS_3(d), "%64", "%65", "%66", "%67", "%68")
#elif W4_TOKENS == 256
#define W4_MULTIPLY(adds) \
  W4_WGMMA(adds, "256", W4_NAMES_7, W4_REGISTERS_7(d), "%128", "%129", "%130", "%131", "%132")
#else
#error "W4_TOKENS must be 16, 32, 48, 64, 96, 128 or 256"
#endif

// d[64 x tokens] = a[64 x 16] . b[tokens x 16]^T
__device__ __forceinline__ void wgmma_first(float* d, const u32 (&a)[4], u64 tokens) {
  W4_MULTIPLY("0");
}

// d[64 x tokens] += a[64 x 16] . b[tokens x 16]^T; a is this warp's m16k16 fragment.
__device__ __forceinline__ void wgmma(float* d, const u32 (&a)[4], u64 tokens) {
  W4_MULTIPLY("1");
}

}  // namespace w4_prefill
