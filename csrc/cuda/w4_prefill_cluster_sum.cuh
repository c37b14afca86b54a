// The sum over the blocks of a cluster that computed one tile, each over its part of K.
//
// A warpgroup's sums fall into parts of kStoreTokens tokens. Block b owns parts b, b + kSplit, ...;
// all blocks send it theirs through distributed shared memory, and it adds them in block order.
#pragma once

#include "w4_prefill_tile.cuh"

namespace w4_prefill {

class ClusterSum {
 public:
  static constexpr int kOwnParts = kParts / kSplit;
  static_assert(kParts % kSplit == 0, "every block owns as many parts");

  __device__ __forceinline__ ClusterSum(const Shared& shared, int warpgroup)
      : barrier_(shared.summed + 8 * warpgroup),
        sums_(shared.sums + warpgroup * kParts * kPartBytes + threadIdx.x % kWarpgroup * 16),
        rank_(cluster_rank()) {}

  // Once, before the cluster synchronises: one tile's sums will come.
  __device__ __forceinline__ static void expect(const Shared& shared) {
    for (int warpgroup = 0; warpgroup < kConsumers; ++warpgroup) {
      barrier_init(shared.summed + 8 * warpgroup, 1);
      barrier_expect(shared.summed + 8 * warpgroup, kParts * kPartBytes);
    }
  }

  __device__ __forceinline__ void send(const float (&sums)[kSums]) const {
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const u32 owner = part % kSplit;
      const u32 target = address_in(sums_ + slot(rank_, part / kSplit), owner);
      const u32 barrier = address_in(barrier_, owner);
#pragma unroll
      for (int i = 0; i < kPart / 4; ++i)
        store_async(target + i * kWarpgroup * 16, sums + part * kPart + 4 * i, barrier);
    }
  }

  // Calls store(sums, part) for every part that this block owns.
  template <typename StorePart>
  __device__ __forceinline__ void receive(StorePart&& store) const {
    barrier_wait(barrier_, 0);
#pragma unroll
    for (int own = 0; own < kOwnParts; ++own) {
      float sums[kPart] = {};
#pragma unroll
      for (int block = 0; block < kSplit; ++block)
#pragma unroll
        for (int i = 0; i < kPart / 4; ++i) {
          const uint4 four = load_shared(sums_ + slot(block, own) + i * kWarpgroup * 16);
          sums[4 * i] += __uint_as_float(four.x);
          sums[4 * i + 1] += __uint_as_float(four.y);
          sums[4 * i + 2] += __uint_as_float(four.z);
          sums[4 * i + 3] += __uint_as_float(four.w);
        }
      store(sums, own * kSplit + rank_);
    }
  }

 private:
  __device__ __forceinline__ static u32 slot(int block, int own) {
    return (block * kOwnParts + own) * kPartBytes;
  }

  u32 barrier_;
  u32 sums_;
  u32 rank_;
};

}  // namespace w4_prefill
