// The two threads that keep a block's ring of stages full.
#pragma once

#include "w4_prefill_tile.cuh"
#include "w4_schedule.cuh"

namespace w4_prefill {

// One copy each brings what a stage needs: a copy costs its issuing thread some hundred cycles,
// however small it is. For the same reason weights and tokens have a thread each; a third one,
// for the second half of a stage's tokens, made a block of linears 1 % slower.
class Producer {
 public:
  __device__ __forceinline__ Producer(const Shared& shared, const w4::Problem& problem, int worker)
      : shared_(shared), problem_(problem), worker_(worker),
        rank_(kCluster == 1 ? 0 : cluster_rank()) {}

  // The codes of a stage, and with a group's first ones its params. Row tiles that do not exist
  // arrive as zeros. Weights do not depend on the kernel before this one.
  __device__ __forceinline__ void run_weights(const TensorMap& codes,
                                              const TensorMap& params) const {
    for_each_stage([&](const w4::TilePosition& at, int slice, int stage) {
      const u32 full = shared_.full + 8 * stage;
      const bool with_params = slice % 2 == 0;
      const int tile = (at.row_tile * kCluster + rank_) * kTiles;
      barrier_expect(full, kCodeBytes + (with_params ? kParamBytes : 0));
      tensor_copy(shared_.codes + stage * kCodeBytes, codes, slice * 128, tile, full);
      if (with_params)
        tensor_copy(shared_.params + stage * kParamBytes, params, slice / 2 * 16, tile, full);
    });
  }

  __device__ __forceinline__ void run_tokens(const TensorMap& tokens) const {
    wait_for_predecessors();
    for_each_stage([&](const w4::TilePosition& at, int slice, int stage) {
      const u32 full = shared_.full + 8 * stage;
      const int row = at.token_tile * kTokens + rank_ * (kTokens / kCluster);
      barrier_expect(full, kTokenBytes);
#pragma unroll
      for (int i = 0; i < kSlices; ++i) {
        const u32 target =
            shared_.tokens + stage * kTokenBytes + i * kSliceBytes + rank_ * kShareBytes;
        const int input = (slice + i) * 64;
        if (kCluster == 1)
          tensor_copy(target, tokens, input, row, full);
        else
          tensor_copy_to_all(target, tokens, input, row, full, (1 << kCluster) - 1);
      }
    });
  }

 private:
  // `slice`: the stage's first one.
  template <typename Fetch>
  __device__ __forceinline__ void for_each_stage(Fetch&& fetch) const {
    w4::Schedule schedule(problem_, worker_);
    w4::Segment segment;
    Ring ring;
    while (schedule.next(segment)) {
      const w4::TilePosition at = w4::tile_position(problem_, segment.tile);
      for (int slice = 2 * segment.begin; slice < 2 * segment.end; slice += kSlices) {
        barrier_wait(shared_.empty + 8 * ring.stage, ring.parity ^ 1);
        fetch(at, slice, ring.stage);
        ring.advance();
      }
    }
  }

  const Shared& shared_;
  const w4::Problem& problem_;
  int worker_;
  u32 rank_;
};

}  // namespace w4_prefill
