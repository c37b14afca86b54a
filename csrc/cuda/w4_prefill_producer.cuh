// The thread that keeps a block's ring of stages full.
#pragma once

#include "w4_prefill_tile.cuh"
#include "w4_schedule.cuh"

namespace w4_prefill {

// Tensor maps; one copy each brings what a stage needs (a copy costs its issuing warp some
// hundred cycles, however small it is).
struct Maps {
  const TensorMap& tokens;
  const TensorMap& codes;
  const TensorMap& params;
};

class Producer {
 public:
  __device__ __forceinline__ Producer(const Shared& shared, const Maps& maps)
      : shared_(shared), maps_(maps), rank_(kCluster == 1 ? 0 : cluster_rank()) {}

  // The codes of inputs 64 * slice..., and with every even slice the group's params. Row tiles
  // that do not exist arrive as zeros.
  __device__ __forceinline__ void fetch_weights(int stage, int row_tile, int slice) const {
    const u32 full = shared_.full + 8 * stage;
    const bool with_params = slice % 2 == 0;
    barrier_expect(full, kTokenBytes + kCodeBytes + (with_params ? kParamBytes : 0));
    const int tile = (row_tile * kCluster + rank_) * kTiles;
    tensor_copy(shared_.codes + stage * kCodeBytes, maps_.codes, slice * 128, tile, full);
    if (with_params)
      tensor_copy(shared_.params + stage * kParamBytes, maps_.params, slice / 2 * 16, tile, full);
  }

  __device__ __forceinline__ void fetch_tokens(int stage, int token_tile, int slice) const {
    const u32 target = shared_.tokens + stage * kTokenBytes + rank_ * kShareBytes;
    const int row = token_tile * kTokens + rank_ * (kTokens / kCluster);
    const u32 full = shared_.full + 8 * stage;
    if (kCluster == 1)
      tensor_copy(target, maps_.tokens, slice * 64, row, full);
    else
      tensor_copy_to_all(target, maps_.tokens, slice * 64, row, full, (1 << kCluster) - 1);
  }

  // Weights do not depend on the kernel before this one: the first round of stages is requested
  // before waiting for it.
  __device__ __forceinline__ void run(const w4::Problem& problem, int worker) const {
    const int early = fetch_first_weights(problem, worker);
    wait_for_predecessors();
    w4::Schedule schedule(problem, worker);
    w4::Segment segment;
    Ring ring;
    int count = 0;
    while (schedule.next(segment)) {
      const w4::TilePosition at = w4::tile_position(problem, segment.tile);
      for (int slice = 2 * segment.begin; slice < 2 * segment.end; ++slice, ++count) {
        if (count >= early) {
          barrier_wait(shared_.empty + 8 * ring.stage, ring.parity ^ 1);
          fetch_weights(ring.stage, at.row_tile, slice);
        }
        fetch_tokens(ring.stage, at.token_tile, slice);
        ring.advance();
      }
    }
  }

 private:
  __device__ __forceinline__ int fetch_first_weights(const w4::Problem& problem, int worker) const {
    w4::Schedule schedule(problem, worker);
    w4::Segment segment;
    if (!schedule.next(segment)) return 0;
    const w4::TilePosition at = w4::tile_position(problem, segment.tile);
    const int count = min(kStages, 2 * (segment.end - segment.begin));
    for (int i = 0; i < count; ++i) fetch_weights(i, at.row_tile, 2 * segment.begin + i);
    return count;
  }

  const Shared& shared_;
  const Maps& maps_;
  u32 rank_;
};

}  // namespace w4_prefill
