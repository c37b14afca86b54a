// Partial sums of tiles that several workers share along K.
#pragma once

#include "w4_prefill_schedule.cuh"
#include "w4_prefill_tile.cuh"

namespace w4_prefill {

// A warpgroup's slot of the workspace: one float4 of every thread side by side.
template <int kValues>
__device__ __forceinline__ void publish_sums(const float (&sums)[kValues], float4* slot) {
#pragma unroll
  for (int i = 0; i < kValues / 4; ++i)
    __stcg(slot + i * kWarpgroup + threadIdx.x % kWarpgroup,
           make_float4(sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]));
}

template <int kValues>
__device__ __forceinline__ void add_sums(float (&sums)[kValues], const float4* slot) {
#pragma unroll
  for (int i = 0; i < kValues / 4; ++i) {
    const float4 other = __ldcg(slot + i * kWarpgroup + threadIdx.x % kWarpgroup);
    sums[4 * i] += other.x;
    sums[4 * i + 1] += other.y;
    sums[4 * i + 2] += other.z;
    sums[4 * i + 3] += other.w;
  }
}

// Hands an unfinished tile's sums to the worker that began the tile, or collects what the next
// workers have of it, in their order.
class Exchange {
 public:
  __device__ __forceinline__ Exchange(float* workspace, int* flags)
      : workspace_(workspace), flags_(flags),
        barrier_(threadIdx.x / kWarpgroup), first_(threadIdx.x % kWarpgroup == 0) {}

  __device__ __forceinline__ void publish(const float (&sums)[kRowBlocks][kTokens / 2],
                                          int worker) const {
    const int slot = slot_of(worker);
    float* floats = workspace_ + static_cast<long long>(slot) * kSlotFloats;
#pragma unroll
    for (int block = 0; block < kRowBlocks; ++block)
      publish_sums(sums[block], reinterpret_cast<float4*>(floats) +
                                    block * (kTokens / 8) * kWarpgroup);
    __threadfence();
    named_barrier(barrier_, kWarpgroup);
    if (first_) store_release(flags_ + slot, 1);
  }

  __device__ __forceinline__ void collect(float (&sums)[kRowBlocks][kTokens / 2],
                                          const Problem& problem, const Segment& segment,
                                          int worker) const {
    const int end = (segment.tile + 1) * problem.groups;
    for (int other = worker + 1; stream_begin(problem, other) < end; ++other) {
      const int slot = slot_of(other);
      if (first_)
        while (load_acquire(flags_ + slot) == 0) {
        }
      named_barrier(barrier_, kWarpgroup);
      const float* floats = workspace_ + static_cast<long long>(slot) * kSlotFloats;
#pragma unroll
      for (int block = 0; block < kRowBlocks; ++block)
        add_sums(sums[block], reinterpret_cast<const float4*>(floats) +
                                  block * (kTokens / 8) * kWarpgroup);
      if (first_) store_release(flags_ + slot, 0);
    }
  }

 private:
  __device__ __forceinline__ int slot_of(int worker) const {
    const int rank = kCluster == 1 ? 0 : cluster_rank();
    return (worker * kCluster + rank) * kConsumers + barrier_ - 1;
  }

  float* workspace_;
  int* flags_;
  int barrier_;  // id of this warpgroup's own barrier
  bool first_;
};

}  // namespace w4_prefill
