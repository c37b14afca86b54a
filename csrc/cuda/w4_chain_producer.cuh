// The lane that keeps a block's ring of weights full, from one linear to the next.
#pragma once

#include "w4_chain_work.cuh"

namespace w4_chain {

// Of two stages of a row tile each block of a pair fetches one, for both.
class Producer {
 public:
  __device__ __forceinline__ Producer(const Chain& chain, u32 base, int* tickets)
      : chain_(chain), base_(base), tickets_(tickets), rank_(rank_in_pair()) {}

  __device__ __forceinline__ void run() {
#pragma unroll 1
    for (int i = 0; i < chain_.count; ++i) {
      const Linear& linear = chain_.linear[i];
      const Share share(linear);
      STAMP(i, 0);
      // Most are dealt; who is slower draws less of the rest.
      const int dealt = kPair > 1 || i == 0 ? share.tiles : share.tiles * W4_DEALT / 8 / share.step * share.step;
#pragma unroll 1
      for (int tile = share.first_tile; tile < dealt; tile += share.step) fetch(linear, share, tile);
      if constexpr (kPair == 1)
        if (dealt < share.tiles) draw(linear, share, dealt, tickets_ + kMostSlices * i + share.slice);
      STAMP(i, 1);
      wait_empty();
      store_int(base_ + kTileOf + 4 * ring_.stage, kEnd);
      barrier_arrive(base_ + kFull + 8 * ring_.stage);
      ring_.advance();
      if constexpr (kPair == 2) {  // The next row tile begins with an even stage again.
        wait_empty();
        barrier_arrive(base_ + kFull + 8 * ring_.stage);
        ring_.advance();
      }
    }
  }

 private:
  __device__ __forceinline__ void draw(const Linear& linear, const Share& share, int dealt, int* ticket) {
    const int left = share.tiles - dealt;
    wait_for_predecessors();  // They may still draw tickets of their own.
    int next = atomicAdd(ticket, 1);
    while (next < left) {
      const int upcoming = atomicAdd(ticket, 1);
      fetch(linear, share, dealt + next);
      next = upcoming;
    }
    if (next == left + share.step - 1) *ticket = 0;  // The last one of all.
  }

  __device__ __forceinline__ void fetch(const Linear& linear, const Share& share, int tile) {
#pragma unroll 1
    for (int j = 0; j < kUnitStages; ++j) {
      const u32 full = base_ + kFull + 8 * ring_.stage;
      wait_empty();
      store_int(base_ + kTileOf + 4 * ring_.stage, tile);
      const int count = min(kStageGroups, share.groups - j * kStageGroups);
      if (count > 0) {
        const size_t at = static_cast<size_t>(tile) * (linear.k / kGroup) + share.first_group +
                          j * kStageGroups;
        const u32 target = base_ + kRing + ring_.stage * kStageBytes;
        barrier_expect(full, count * (kCodeBytes + kScaleBytes));
        if (kPair == 1 || j == static_cast<int>(rank_)) {
          copy(target, linear.codes + at * kCodeBytes, count * kCodeBytes, full);
          copy(target + kStageGroups * kCodeBytes, linear.scales + at * kScaleBytes, count * kScaleBytes,
               full);
        }
      } else {
        barrier_arrive(full);
      }
      ring_.advance();
    }
  }

  __device__ __forceinline__ static void copy(u32 target, const unsigned char* source, u32 bytes,
                                              u32 barrier) {
    if constexpr (kPair == 1)
      bulk_copy(target, source, bytes, barrier);
    else
      bulk_copy_to_all(target, source, bytes, barrier, (1 << kPair) - 1);
  }

  // Until the stage has been read, in all blocks that share it.
  __device__ __forceinline__ void wait_empty() const {
    barrier_wait(base_ + kEmpty + 8 * ring_.stage, ring_.parity ^ 1);
  }

  const Chain& chain_;
  u32 base_;
  int* tickets_;
  u32 rank_;
  Ring ring_;
};

}  // namespace w4_chain
