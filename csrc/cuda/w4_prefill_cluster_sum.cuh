// The sum over the blocks of a cluster that computed one tile, each over its part of K.
//
// A tile's sums fall into parts: one warpgroup's rows and kStoreTokens tokens each. Block b owns
// parts b, b + kSplit, ...; all blocks send it theirs through distributed shared memory, and the
// same warpgroup of it adds them in block order.
#pragma once

#include "w4_prefill_tile.cuh"

namespace w4_prefill {

class ClusterSum {
 public:
  __device__ __forceinline__ ClusterSum(const Shared& shared, int warpgroup)
      : barrier_(shared.summed + 8 * warpgroup),
        sums_(shared.sums + threadIdx.x % kWarpgroup * 16),
        first_part_(warpgroup * kParts),
        rank_(cluster_rank()) {}

  // Once, before the cluster synchronises: one tile's sums will come.
  __device__ __forceinline__ static void expect(const Shared& shared) {
    const u32 rank = cluster_rank();
    for (int warpgroup = 0; warpgroup < kConsumers; ++warpgroup) {
      int own = 0;
      for (int part = 0; part < kParts; ++part)
        own += owner_of(warpgroup * kParts + part) == rank;
      barrier_init(shared.summed + 8 * warpgroup, 1);
      barrier_expect(shared.summed + 8 * warpgroup, own * kSplit * kPartBytes);
    }
  }

  __device__ __forceinline__ void send(const float (&sums)[kSums]) const {
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const u32 owner = owner_of(first_part_ + part);
      const u32 target = address_in(sums_ + slot(rank_, first_part_ + part), owner);
      const u32 barrier = address_in(barrier_, owner);
#pragma unroll
      for (int i = 0; i < kPart / 4; ++i)
        store_async(target + i * kWarpgroup * 16, sums + part * kPart + 4 * i, barrier);
    }
  }

  // Calls store(sums, part) for every part of the warpgroup that this block owns.
  template <typename StorePart>
  __device__ __forceinline__ void receive(StorePart&& store) const {
    barrier_wait(barrier_, 0);
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      if (owner_of(first_part_ + part) != rank_) continue;
      float sums[kPart] = {};
#pragma unroll
      for (int block = 0; block < kSplit; ++block)
#pragma unroll
        for (int i = 0; i < kPart / 4; ++i) {
          const uint4 four =
              load_shared(sums_ + slot(block, first_part_ + part) + i * kWarpgroup * 16);
          sums[4 * i] += __uint_as_float(four.x);
          sums[4 * i + 1] += __uint_as_float(four.y);
          sums[4 * i + 2] += __uint_as_float(four.z);
          sums[4 * i + 3] += __uint_as_float(four.w);
        }
      store(sums, part);
    }
  }

 private:
  __device__ __forceinline__ static u32 owner_of(int tile_part) { return tile_part % kSplit; }

  // Where a block's share of a part lies with the part's owner.
  __device__ __forceinline__ static u32 slot(int block, int tile_part) {
    return (block * kOwnParts + tile_part / kSplit) * kPartBytes;
  }

  u32 barrier_;
  u32 sums_;
  int first_part_;  // of the warpgroup, among the tile's
  u32 rank_;
};

}  // namespace w4_prefill
