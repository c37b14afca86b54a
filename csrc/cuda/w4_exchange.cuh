// Partial sums of tiles that several workers share along K: the worker that began a tile adds up
// what the next workers have of it, in their order, so that the result never depends on timing.
#pragma once

#include "w4_schedule.cuh"

namespace w4 {

__device__ __forceinline__ int load_acquire(const int* address) {
  int value;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
  return value;
}

__device__ __forceinline__ void store_release(int* address, int value) {
  asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}

// A barrier among `threads` threads of the block; id 0 with all threads is __syncthreads.
__device__ __forceinline__ void named_barrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// A team: kThreads threads that hold kValues partial sums each and meet at one barrier. Its slots
// in the workspace hold one float4 of every thread side by side; it has one flag a worker.
template <int kThreads, int kValues>
class Exchange {
 public:
  __device__ __forceinline__ Exchange(float* workspace, int* flags, int team, int teams,
                                      int barrier)
      : workspace_(workspace), flags_(flags), team_(team), teams_(teams), barrier_(barrier),
        thread_(threadIdx.x % kThreads) {}

  // Hands an unfinished tile's sums to the worker that began the tile.
  __device__ __forceinline__ void publish(const float (&sums)[kValues], int worker) const {
    float4* slot = slot_of(worker);
#pragma unroll
    for (int i = 0; i < kValues / 4; ++i)
      __stcg(slot + i * kThreads,
             make_float4(sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]));
    named_barrier(barrier_, kThreads);
    if (thread_ == 0) store_release(flag_of(worker), 1);
  }

  __device__ __forceinline__ void collect(float (&sums)[kValues], const Problem& problem,
                                          const Segment& segment, int worker) const {
    const int end = (segment.tile + 1) * problem.groups;
    int last = worker;
    while (stream_begin(problem, last + 1) < end) ++last;
    for (int other = worker + 1 + thread_; other <= last; other += kThreads) {
      while (load_acquire(flag_of(other)) == 0) {
      }
      __stcg(flag_of(other), 0);
    }
    named_barrier(barrier_, kThreads);
    for (int first = worker + 1; first <= last; first += kAhead) add(sums, first, last);
  }

 private:
  // Workers whose sums are under way at once, so far as registers allow.
  static constexpr int kAhead = kValues > 16 ? 1 : 32 / kValues;

  // The sums of workers first ... last, but of kAhead at most, one after the other.
  __device__ __forceinline__ void add(float (&sums)[kValues], int first, int last) const {
    float4 others[kAhead][kValues / 4];
#pragma unroll
    for (int ahead = 0; ahead < kAhead; ++ahead) {
      const float4* slot = slot_of(min(first + ahead, last));
#pragma unroll
      for (int i = 0; i < kValues / 4; ++i) others[ahead][i] = __ldcg(slot + i * kThreads);
    }
#pragma unroll
    for (int ahead = 0; ahead < kAhead; ++ahead) {
      if (first + ahead > last) break;
#pragma unroll
      for (int i = 0; i < kValues / 4; ++i) {
        sums[4 * i] += others[ahead][i].x;
        sums[4 * i + 1] += others[ahead][i].y;
        sums[4 * i + 2] += others[ahead][i].z;
        sums[4 * i + 3] += others[ahead][i].w;
      }
    }
  }

  __device__ __forceinline__ float4* slot_of(int slot) const {
    return reinterpret_cast<float4*>(workspace_) +
           static_cast<long long>(slot * teams_ + team_) * (kThreads * kValues / 4) + thread_;
  }

  __device__ __forceinline__ int* flag_of(int owner) const {
    return flags_ + owner * teams_ + team_;
  }

  float* workspace_;
  int* flags_;
  int team_;
  int teams_;
  int barrier_;
  int thread_;
};

}  // namespace w4
