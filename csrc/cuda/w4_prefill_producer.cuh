// The warp that keeps a block's ring of stages full.
#pragma once

#include "w4_prefill_tile.cuh"
#include "w4_schedule.cuh"

namespace w4_prefill {

struct Weights {
  const uint4* codes;   // 32 a tile of 16 rows x 64 inputs
  const uint2* params;  // 8 a row tile and group
  int row_tiles16;      // 16-row tiles that exist
};

class Producer {
 public:
  __device__ __forceinline__ Producer(const Shared& shared, const TensorMap& tokens,
                                      const Weights& weights, int groups)
      : shared_(shared), map_(tokens), weights_(weights), groups_(groups),
        lane_(threadIdx.x % 32), rank_(kCluster == 1 ? 0 : cluster_rank()) {}

  // The codes of inputs 64 * slice..., and with every even slice the group's params.
  __device__ __forceinline__ void fetch_weights(int stage, int row_tile, int slice) const {
    const u32 full = shared_.full + 8 * stage;
    const bool with_params = slice % 2 == 0;
    if (lane_ == 0)
      barrier_expect(full, kTokenBytes + kCodeBytes + (with_params ? kParamBytes : 0));
    __syncwarp();
    if (lane_ >= kTiles) return;
    const int tile = min((row_tile * kCluster + rank_) * kTiles + lane_, weights_.row_tiles16 - 1);
    bulk_copy(shared_.codes + stage * kCodeBytes + lane_ * 512,
              weights_.codes + (static_cast<long long>(tile) * 2 * groups_ + slice) * 32, 512, full);
    if (with_params)
      bulk_copy(shared_.params + stage * kParamBytes + lane_ * 64,
                weights_.params + (static_cast<long long>(tile) * groups_ + slice / 2) * 8, 64, full);
  }

  __device__ __forceinline__ void fetch_tokens(int stage, int token_tile, int slice) const {
    if (lane_ != 0) return;
    const u32 target = shared_.tokens + stage * kTokenBytes + rank_ * kShareBytes;
    const int row = token_tile * kTokens + rank_ * (kTokens / kCluster);
    const u32 full = shared_.full + 8 * stage;
    if (kCluster == 1)
      tensor_copy(target, map_, slice * 64, row, full);
    else
      tensor_copy_to_all(target, map_, slice * 64, row, full, (1 << kCluster) - 1);
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
  const TensorMap& map_;
  const Weights& weights_;
  int groups_;
  int lane_;
  u32 rank_;
};

}  // namespace w4_prefill
