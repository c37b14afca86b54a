// wgmma m64 x kTokens x k16 for 8 to 64 tokens: A (weights) in registers, B (tokens) in shared memory.
#pragma once

#include "w4_decode_ptx.cuh"

namespace w4_decode {

#define W4_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define W4_D16(i) W4_D4(i), W4_D4(i + 4), W4_D4(i + 8), W4_D4(i + 12)
#define W4_INPUTS "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(tokens)

__device__ __forceinline__ void multiply_add(float (&d)[4], const u32 (&a)[4], u64 tokens) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0,%1,%2,%3}, {%4,%5,%6,%7}, %8, "
      "1, 1, 1, 0;"
      : W4_D4(0)
      : W4_INPUTS);
}

__device__ __forceinline__ void multiply_add(float (&d)[8], const u32 (&a)[4], u64 tokens) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%0,%1,%2,%3,%4,%5,%6,%7}, "
      "{%8,%9,%10,%11}, %12, 1, 1, 1, 0;"
      : W4_D4(0), W4_D4(4)
      : W4_INPUTS);
}

__device__ __forceinline__ void multiply_add(float (&d)[16], const u32 (&a)[4], u64 tokens) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,"
      "%12,%13,%14,%15}, {%16,%17,%18,%19}, %20, 1, 1, 1, 0;"
      : W4_D16(0)
      : W4_INPUTS);
}

__device__ __forceinline__ void multiply_add(float (&d)[32], const u32 (&a)[4], u64 tokens) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,"
      "%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "
      "{%32,%33,%34,%35}, %36, 1, 1, 1, 0;"
      : W4_D16(0), W4_D16(16)
      : W4_INPUTS);
}

__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Fixes the place where the fragments are complete: nothing that defines them may sink below.
__device__ __forceinline__ void pin_registers(u32 (&a)[4][4]) {
#pragma unroll
  for (int s = 0; s < 4; ++s)
    asm volatile("" : "+r"(a[s][0]), "+r"(a[s][1]), "+r"(a[s][2]), "+r"(a[s][3])::"memory");
}

// Descriptor of a K-major tile [tokens x 64 BF16] in the 128-byte swizzle: 8 rows lie 1024 bytes
// apart. The next 16 inputs lie 32 bytes further on, which is 2 in the descriptor's address.
__device__ __forceinline__ u64 token_descriptor(u32 address) {
  return (static_cast<u64>(1) << 62) | (static_cast<u64>(1024 >> 4) << 32) |
         (static_cast<u64>(1) << 16) | ((address & 0x3ffff) >> 4);
}

// An opaque CUtensorMap; declared here so that no driver header is needed.
struct alignas(64) TensorMap {
  unsigned char opaque[128];
};

__device__ __forceinline__ void tensor_copy(u32 target, const TensorMap& map, int column, int row,
                                            u32 barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%2, %3}], [%4];" ::"r"(target),
      "l"(&map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}

#undef W4_D4
#undef W4_D16
#undef W4_INPUTS

}  // namespace w4_decode
