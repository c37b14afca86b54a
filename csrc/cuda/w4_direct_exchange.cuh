// As w4_exchange.cuh, with fewer trips through memory: every eight bytes are a sum and a mark that it
// has arrived, so that nobody waits for a flag that says that all have. For few sums a thread.
#pragma once

#include "w4_schedule.cuh"

namespace w4 {

__device__ __forceinline__ uint4 load_relaxed(const uint4* address) {
  uint4 value;
  asm volatile("ld.relaxed.gpu.global.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(address)
               : "memory");
  return value;
}

__device__ __forceinline__ void store_relaxed(uint4* address, const uint4& value) {
  asm volatile("st.relaxed.gpu.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(value.x),
               "r"(value.y), "r"(value.z), "r"(value.w)
               : "memory");
}

__device__ __forceinline__ unsigned int bits_of(float value) {
  return __float_as_uint(value);
}

// marked: 2 * kThreads * kValues ints for each worker and team, zero before the first launch, left
// zero by every launch: who adds up a sum takes its mark away.
template <int kThreads, int kValues>
class DirectExchange {
 public:
  __device__ __forceinline__ DirectExchange(int* marked, int team, int teams)
      : marked_(marked), team_(team), teams_(teams), thread_(threadIdx.x % kThreads) {}

  // Hands an unfinished tile's sums to the worker that began the tile.
  __device__ __forceinline__ void publish(const float (&sums)[kValues], int worker) const {
    uint4* slot = slot_of(worker);
#pragma unroll
    for (int i = 0; i < kPairs; ++i)
      store_relaxed(slot + i * kThreads,
                    uint4{bits_of(sums[2 * i]), 1u, bits_of(sums[2 * i + 1]), 1u});
  }

  __device__ __forceinline__ void collect(float (&sums)[kValues], const Problem& problem,
                                          const Segment& segment, int worker) const {
    const int end = (segment.tile + 1) * problem.groups;
    int last = worker;
    while (stream_begin(problem, last + 1) < end) ++last;
    for (int first = worker + 1; first <= last; first += kAhead) add(sums, first, last);
  }

 private:
  static constexpr int kPairs = kValues / 2;
  // Workers whose sums are under way at once, so far as registers allow.
  static constexpr int kAhead = kValues > 12 ? 1 : 24 / kValues;

  // The sums of workers first ... last, but of kAhead at most, one after the other.
  __device__ __forceinline__ void add(float (&sums)[kValues], int first, int last) const {
    uint4 others[kAhead][kPairs];
    unsigned int arrived;
    do {
      arrived = 1;
#pragma unroll
      for (int ahead = 0; ahead < kAhead; ++ahead)
#pragma unroll
        for (int i = 0; i < kPairs; ++i)
          others[ahead][i] = load_relaxed(slot_of(min(first + ahead, last)) + i * kThreads);
#pragma unroll
      for (int ahead = 0; ahead < kAhead; ++ahead)
#pragma unroll
        for (int i = 0; i < kPairs; ++i) arrived &= others[ahead][i].y & others[ahead][i].w;
    } while (arrived == 0);
#pragma unroll
    for (int ahead = 0; ahead < kAhead; ++ahead) {
      if (first + ahead > last) break;
      uint4* slot = slot_of(first + ahead);
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        sums[2 * i] += __uint_as_float(others[ahead][i].x);
        sums[2 * i + 1] += __uint_as_float(others[ahead][i].z);
        store_relaxed(slot + i * kThreads, uint4{0u, 0u, 0u, 0u});
      }
    }
  }

  __device__ __forceinline__ uint4* slot_of(int worker) const {
    return reinterpret_cast<uint4*>(marked_) +
           static_cast<long long>(worker * teams_ + team_) * (kThreads * kPairs) + thread_;
  }

  int* marked_;
  int team_;
  int teams_;
  int thread_;
};

}  // namespace w4
