// Asynchronous copies to shared memory, past L1 and without registers (cp.async, sm_80 and up).
#pragma once
#ifndef EDGE_PQ
#define EDGE_PQ 1
#endif
#ifndef EDGE_S4
#define EDGE_S4 0
#endif


namespace awqkit {

// 16 bytes.
__device__ __forceinline__ void copy_async(unsigned int target, const void* source) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(target), "l"(source) : "memory");
}

__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// All of this thread's but the kPending groups that it committed last.
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace awqkit
