// Thin wrappers of the PTX that w4_chain.cu needs besides that of w4_decode_ptx.cuh; sm_90 and up.
#pragma once

#include "w4_decode_ptx.cuh"

namespace w4_chain {

using namespace w4_decode;

// ---- shared memory, and that of the other blocks of a cluster ---------------------------------------

__device__ __forceinline__ void store_int(u32 address, int value) {
  asm volatile("st.shared.s32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}

__device__ __forceinline__ int load_int(u32 address) {
  int value;
  asm volatile("ld.shared.s32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
  return value;
}

__device__ __forceinline__ void store_shared_8(u32 address, float2 value) {
  asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(address), "f"(value.x), "f"(value.y)
               : "memory");
}

__device__ __forceinline__ u32 cluster_rank() {
  u32 rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// The address that corresponds to `address` in block `rank` of the cluster.
__device__ __forceinline__ u32 address_in(u32 address, u32 rank) {
  u32 remote;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
  return remote;
}

__device__ __forceinline__ void barrier_arrive_remote(u32 barrier) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::
                   : "memory");
}

// Writes to the same shared address, and counts at the same barrier, in every block of the cluster
// whose bit is set. Bytes, both addresses: multiples of 16.
__device__ __forceinline__ void bulk_copy_to_all(u32 target, const void* source, u32 bytes,
                                                 u32 barrier, u16 blocks) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
      " [%0], [%1], %2, [%3], %4;" ::"r"(target),
      "l"(source), "r"(bytes), "r"(barrier), "h"(blocks)
      : "memory");
}

// A barrier among `threads` threads of the block; 0 is that of __syncthreads.
__device__ __forceinline__ void named_barrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- memory that the blocks share --------------------------------------------------------------------

__device__ __forceinline__ int load_acquire(const int* address) {
  int value;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
  return value;
}

// What the block's threads wrote before its barrier is there for whoever sees what follows.
__device__ __forceinline__ void publish() {
#if W4_FENCE == 1
  asm volatile("fence.acq_rel.gpu;" ::: "memory");
#elif W4_FENCE == 0
  __threadfence();
#endif
}

// A packet is a number below the mark of what it belongs to, written and read as one word: whoever
// sees the mark has the number, so that nothing is fenced and no flag follows.
struct alignas(16) Packets {
  u64 first, second;
};

__device__ __forceinline__ Packets marked(float2 numbers, u32 mark) {
  return {u64(mark) << 32 | __float_as_uint(numbers.x), u64(mark) << 32 | __float_as_uint(numbers.y)};
}

__device__ __forceinline__ bool has_mark(const Packets& packets, u32 mark) {
  return u32(packets.first >> 32) == mark && u32(packets.second >> 32) == mark;
}

__device__ __forceinline__ float2 numbers_of(const Packets& packets) {
  return {__uint_as_float(u32(packets.first)), __uint_as_float(u32(packets.second))};
}

__device__ __forceinline__ void store_packets(Packets* to, const Packets& packets) {
  asm volatile("st.relaxed.gpu.global.v2.u64 [%0], {%1, %2};" ::"l"(to), "l"(packets.first),
               "l"(packets.second)
               : "memory");
}

__device__ __forceinline__ Packets load_packets(const Packets* from) {
  Packets packets;
  asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];"
               : "=l"(packets.first), "=l"(packets.second)
               : "l"(from)
               : "memory");
  return packets;
}

// ---- numbers and registers ---------------------------------------------------------------------------

// A value whose derivatives are computed where they are used, and take no registers elsewhere.
__device__ __forceinline__ int anew(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

// A BF16 pair times 2^64.
__device__ __forceinline__ u32 raise(u32 pair) {
  u32 d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(pair), "r"(0x5f805f80u), "r"(0x80008000u));
  return d;
}

template <int kRegisters>
__device__ __forceinline__ void claim_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kRegisters>
__device__ __forceinline__ void release_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace w4_chain
