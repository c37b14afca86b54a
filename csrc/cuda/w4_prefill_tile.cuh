// Sizes of a block's tile, its shared memory and the position in its ring of stages.
#pragma once

#ifndef W4_TOKENS
#define W4_TOKENS 256
#endif
#ifndef W4_ROW_BLOCKS
#define W4_ROW_BLOCKS 1
#endif
#ifndef W4_CLUSTER
#define W4_CLUSTER 2
#endif
#ifndef W4_STAGES
#define W4_STAGES 5
#endif

#include "w4_prefill_async.cuh"

namespace w4_prefill {

constexpr int kWarpgroup = 128;
constexpr int kTokens = W4_TOKENS;
constexpr int kRowBlocks = W4_ROW_BLOCKS;
constexpr int kCluster = W4_CLUSTER;
constexpr int kStages = W4_STAGES;
constexpr int kConsumers = 2;                        // warpgroups
constexpr int kTiles = 4 * kConsumers * kRowBlocks;  // 16-row code tiles a block
constexpr int kRows = 16 * kTiles;
constexpr int kThreads = kWarpgroup * (1 + kConsumers);
constexpr int kStoreTokens = 32;                     // tokens that pass to Y at a time
constexpr int kStoreBytes = kStoreTokens * 64 * 2;   // one of a warpgroup's two buffers
constexpr int kTokenBytes = kTokens * 128;
constexpr int kCodeBytes = kTiles * 512;
constexpr int kParamBytes = kTiles * 64;
constexpr int kShareBytes = kTokenBytes / kCluster;
constexpr int kBlockSums = kTokens / 2;             // accumulators a thread has of 64 rows
constexpr int kSums = kRowBlocks * kBlockSums;

// Shared memory: the tokens of all stages (1024-byte aligned), codes, params, store buffers,
// barriers.
struct Shared {
  u32 tokens, codes, params, store, full, empty;

  __device__ __forceinline__ explicit Shared(u32 base)
      : tokens(base),
        codes(tokens + kStages * kTokenBytes),
        params(codes + kStages * kCodeBytes),
        store(params + kStages * kParamBytes),
        full(store + 2 * kConsumers * kStoreBytes),
        empty(full + 8 * kStages) {}
};

// Position in the ring; `parity` is that of the phase in which this round of stages fills.
struct Ring {
  int stage = 0;
  u32 parity = 0;

  __device__ __forceinline__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

}  // namespace w4_prefill
