// The sum over warpgroups that computed one tile, each of other groups of K, in one block or a cluster.
//
// A thread's sums fall into as many chunks as warpgroups share the tile; all send a warpgroup its chunk
// through (distributed) shared memory, and the same thread of it adds up what came, in their order.
#pragma once

#include "w4_prefill_store.cuh"

namespace w4_prefill {

class InnerSum {
 public:
  static constexpr int kSources = kSplit * kInner;
  static constexpr int kChunk = kSums / kSources;
  static_assert(kInner == 1 || (kSums % kSources == 0 && kChunk <= 4), "a chunk is one store");

  __device__ __forceinline__ InnerSum(const Shared& shared, int warpgroup)
      : shared_(shared), warpgroup_(warpgroup), rank_(kSplit == 1 ? 0 : cluster_rank()) {}

  // Once, before the cluster synchronises: one tile's sums will come.
  __device__ __forceinline__ static void expect(const Shared& shared) {
    for (int warpgroup = 0; warpgroup < kInner; ++warpgroup) {
      barrier_init(shared.summed + 8 * warpgroup, 1);
      barrier_expect(shared.summed + 8 * warpgroup, kSources * kSlotBytes);
    }
  }

  __device__ __forceinline__ void send(const float (&sums)[kSums]) const {
#pragma unroll
    for (int owner = 0; owner < kSources; ++owner) {
      const int warpgroup = owner % kInner, rank = owner / kInner;
      store_async_some<kChunk>(address_in(slot(warpgroup, rank_ * kInner + warpgroup_), rank),
                               sums + owner * kChunk,
                               address_in(shared_.summed + 8 * warpgroup, rank));
    }
  }

  // The warpgroup's chunk, complete.
  __device__ __forceinline__ void receive(float (&all)[kChunk]) const {
    barrier_wait(shared_.summed + 8 * warpgroup_, 0);
#pragma unroll
    for (int i = 0; i < kChunk; ++i) all[i] = 0.0f;
#pragma unroll
    for (int source = 0; source < kSources; ++source)
#pragma unroll
      for (int i = 0; i < kChunk; ++i)
        all[i] += load_shared_float(slot(warpgroup_, source) + 4 * i);
  }

  // row: the tile's first.
  __device__ __forceinline__ void write(const float (&all)[kChunk], const Output& out, int row) const {
    const int lane = threadIdx.x % 32, r = lane / 4, c = lane % 4;
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      // Sum 4j + i belongs to row r + 8 (i / 2) and token 8j + 2c + i % 2. Of two neighbouring rows one
      // lane writes both.
      const int at = (rank_ * kInner + warpgroup_) * kChunk + i;
      const float next = __shfl_down_sync(0xffffffffu, all[i], 4);
      const int to_row = row + threadIdx.x / 32 % 4 * 16 + r + at / 2 % 2 * 8;
      const int to_token = at / 4 * 8 + 2 * c + at % 2;
      if (r % 2 != 0 || to_row >= out.n || to_token >= out.m) continue;
      const float bias[2] = {out.bias == nullptr ? 0.0f : bf16_to_float(out.bias[to_row]),
                             out.bias == nullptr ? 0.0f : bf16_to_float(out.bias[to_row + 1])};
      *reinterpret_cast<u32*>(out.y + static_cast<long long>(to_token) * out.n + to_row) =
          pack_bf16(all[i] + bias[0], next + bias[1]);
    }
  }

 private:
  static constexpr int kSlotBytes = kChunk * 4 * kWarpgroup;

  // Where the chunk of `warpgroup` lies that `source` sends.
  __device__ __forceinline__ u32 slot(int warpgroup, int source) const {
    return shared_.sums + (warpgroup * kSources + source) * kSlotBytes +
           threadIdx.x % kWarpgroup * kChunk * 4;
  }

  const Shared& shared_;
  int warpgroup_;
  int rank_;
};

}  // namespace w4_prefill
