// wgmma m64 x 2 * kTokens x k32 with A (codes, u8) in registers and B (halves of inputs, s8) in shared
// memory, accumulators in s32.
#pragma once

#include "w4_prefill_wgmma_base.cuh"

namespace w4_prefill {

#define W4_I4(d, i) "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3])
#define W4_I8(d, i) W4_I4(d, i), W4_I4(d, i + 4)
#define W4_I16(d, i) W4_I8(d, i), W4_I8(d, i + 8)
#define W4_I32(d) W4_I16(d, 0), W4_I16(d, 16)
#define W4_INTEGER_WGMMA(adds, shape, names, registers, a0, a1, a2, a3, b)             \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" shape "k32.s32.u8.s8 {" names       \
               "}, {" a0 "," a1 "," a2 "," a3 "}, " b ", " adds ";"                    \
               : registers                                                             \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(tokens))

// adds: "1" to d, "0" instead of what d holds.
#if W4_TOKENS == 8
#define W4_MULTIPLY_INTEGERS(adds) \
  W4_INTEGER_WGMMA(adds, "16", W4_NAMES_HALF, W4_I8(d, 0), "%8", "%9", "%10", "%11", "%12")
#elif W4_TOKENS == 16
#define W4_MULTIPLY_INTEGERS(adds) \
  W4_INTEGER_WGMMA(adds, "32", W4_NAMES_0, W4_I16(d, 0), "%16", "%17", "%18", "%19", "%20")
#elif W4_TOKENS == 32
#define W4_MULTIPLY_INTEGERS(adds) \
  W4_INTEGER_WGMMA(adds, "64", W4_NAMES_1, W4_I32(d), "%32", "%33", "%34", "%35", "%36")
#else
#error "W4_TOKENS must be 8, 16 or 32"
#endif

// d[64 x 2 * tokens] = a[64 x 32] . b[2 * tokens x 32]^T
__device__ __forceinline__ void wgmma_integers_first(int* d, const u32 (&a)[4], u64 tokens) {
  W4_MULTIPLY_INTEGERS("0");
}

// d[64 x 2 * tokens] += a[64 x 32] . b[2 * tokens x 32]^T; a is this warp's m16k32 fragment.
__device__ __forceinline__ void wgmma_integers(int* d, const u32 (&a)[4], u64 tokens) {
  W4_MULTIPLY_INTEGERS("1");
}

}  // namespace w4_prefill
