// wgmma m64 x kTokens x k16 with A (weights) in registers and B (tokens) in shared memory,
// accumulators in FP32. W4_TOKENS (16, 32, 48, 64, 96, 128 or 256) fixes the instruction's shape.
#pragma once

#include "w4_prefill_tile.cuh"

namespace w4_prefill {

// Register lists of 16, as wgmma wants them: operand names and asm constraints.
#define W4_NAMES_HALF "%0,%1,%2,%3,%4,%5,%6,%7"
#define W4_NAMES_0 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define W4_NAMES_1 W4_NAMES_0 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define W4_NAMES_1_HALF W4_NAMES_0 ",%16,%17,%18,%19,%20,%21,%22,%23"
#define W4_NAMES_2 W4_NAMES_1 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define W4_NAMES_3 W4_NAMES_2 ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define W4_NAMES_4 W4_NAMES_3 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79"
#define W4_NAMES_5 W4_NAMES_4 ",%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define W4_NAMES_6 \
  W4_NAMES_5 ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111"
#define W4_NAMES_7 \
  W4_NAMES_6 ",%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"

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

__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

// Fixes the place where a fragment is complete: nothing that defines it may sink below.
__device__ __forceinline__ void pin_registers(u32 (&fragment)[4]) {
  asm volatile(""
               : "+r"(fragment[0]), "+r"(fragment[1]), "+r"(fragment[2]), "+r"(fragment[3])::"memory");
}

__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Descriptor of a K-major tile [tokens x 64 BF16] in the 128-byte swizzle, less its address: 8 rows
// lie 1024 bytes apart. The next 16 inputs lie 32 bytes further on, which is 2 in the descriptor's
// address.
constexpr u64 kTokenDescriptor = static_cast<u64>(1) << 62 | static_cast<u64>(1024 >> 4) << 32 |
                                 static_cast<u64>(1) << 16;

}  // namespace w4_prefill
