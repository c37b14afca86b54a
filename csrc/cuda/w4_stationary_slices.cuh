// More inputs than a block's registers hold: each block of a cluster has a slice of them, of the same row
// tiles, and sends its sums to the block that ends the row tile, every kSlices-th. They are added up in
// the order of the slices.
#pragma once

#include "w4_prefill_async.cuh"
#include "w4_stationary_x.cuh"

namespace w4_stationary {

constexpr int kSlices = W4_SLICES;
constexpr int kSlots = kSlices > 1 ? 3 : 0;  // row tiles that a block may end: each has its place
constexpr int kSlotBytes = kSlices * kPartialBytes;

// Of one block: its slice of the groups, and its row tiles, every `step`-th from `first_tile` on.
struct Share {
  int first_group, groups;
  int first_tile, step, tiles;

  __device__ __forceinline__ explicit Share(const Problem& p)
      : first_tile(blockIdx.x / kSlices), step(gridDim.x / kSlices), tiles((p.n + 15) / 16) {
    const int all = p.k / kGroup, slice = kSlices > 1 ? w4_prefill::cluster_rank() : 0;
    first_group = all * slice / kSlices;
    groups = all * (slice + 1) / kSlices - first_group;
  }
};

// All threads of the block, or of the cluster, so that nobody sends to barriers that are not there yet.
__device__ __forceinline__ void meet() {
  if constexpr (kSlices > 1) {
    w4_prefill::cluster_arrive_relaxed();
    w4_prefill::cluster_wait();
  } else {
    __syncthreads();
  }
}

// One thread, before any slice can arrive. ended: kSlots barriers.
__device__ __forceinline__ void expect_slices(u32 ended) {
  for (int i = 0; i < kSlots; ++i) {
    barrier_init(ended + 8 * i, 1);
    barrier_expect(ended + 8 * i, kSlotBytes);
  }
}

// A warp: its block's sums of a row tile. sums, ended: where the same block has its slots and barriers.
__device__ __forceinline__ void send(const Share& share, u32 sums, u32 ended, int tile,
                                     const float (&sum)[4], int lane) {
  const int index = (tile - share.first_tile) / share.step;
  const u32 slot = index / kSlices, owner = index % kSlices;
  const u32 target = sums + slot * kSlotBytes + w4_prefill::cluster_rank() * kPartialBytes + 16 * lane;
  w4_prefill::store_async(w4_prefill::address_in(target, owner), sum,
                          w4_prefill::address_in(ended + 8 * slot, owner));
}

// A warp: ends all row tiles that are this block's to end.
__device__ __forceinline__ void join(const Problem& p, const Share& share, u32 sums, u32 ended, int lane) {
  int tile = share.first_tile + w4_prefill::cluster_rank() * share.step;
#pragma unroll 1
  for (int slot = 0; tile < share.tiles; ++slot, tile += kSlices * share.step) {
    barrier_wait(ended + 8 * slot, 0);
    float sum[4] = {};
#pragma unroll
    for (int s = 0; s < kSlices; ++s)
      add(sum, load_shared_16(sums + slot * kSlotBytes + s * kPartialBytes + 16 * lane));
    store_rows(p, tile, sum, lane);
  }
}

}  // namespace w4_stationary
