// Warpgroups that take turns with the tensor cores: while some multiply, the others prepare.
#pragma once

#include "w4_prefill_tile.cuh"

namespace w4_prefill {

// A turn is half of two or four warpgroups, or one of three.
constexpr int kTurnWarps = kConsumers == 4 ? 8 : 4;
constexpr int kTurns = 4 * kConsumers / kTurnWarps;

class Turns {
 public:
  __device__ __forceinline__ explicit Turns(const Shared& shared)
      : turns_(shared.turns), turn_(static_cast<int>(threadIdx.x) / 32 / kTurnWarps),
        parity_(turn_ == 0) {}

  __device__ __forceinline__ static void init(const Shared& shared) {
    for (int turn = 0; turn < kTurns; ++turn) barrier_init(shared.turns + 8 * turn, kTurnWarps);
  }

  __device__ __forceinline__ void wait() {
    barrier_wait(turns_ + 8 * turn_, parity_);
    parity_ ^= 1;
  }

  __device__ __forceinline__ void pass() const {
    if (threadIdx.x % 32 == 0)
      barrier_arrive(turns_ + 8 * (turn_ + 1 == kTurns ? 0 : turn_ + 1));
  }

 private:
  u32 turns_;
  int turn_;
  u32 parity_;
};

}  // namespace w4_prefill
