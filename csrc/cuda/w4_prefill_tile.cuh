// Sizes of a block's tile, its shared memory and the position in its ring of stages.
#pragma once

#include "w4_prefill_async.cuh"

namespace w4_prefill {

constexpr int kWarpgroup = 128;
constexpr int kTokens = W4_TOKENS;          // of a tile
constexpr bool kByWarps = kTokens == 8;     // every warp multiplies by itself, with mma.sync
constexpr int kConsumers = W4_CONSUMERS;    // warpgroups
constexpr int kRowBlocks = W4_ROW_BLOCKS;   // of 64 rows, of a consumer
constexpr int kCluster = W4_CLUSTER;        // blocks that share tokens
constexpr int kSplit = W4_SPLIT;            // blocks that share a tile, each a part of K
constexpr int kStages = W4_STAGES;
constexpr int kBatch = W4_BATCH;            // k16 steps that are dequantized and multiplied at a time
constexpr bool kScaleSums = W4_SCALE_SUMS;  // scales meet a group's sums, not the weights
constexpr int kSlices = kScaleSums ? 2 : 1; // of 64 inputs, of a stage
constexpr int kBlocks = W4_BLOCKS;          // on a multiprocessor at once
static_assert(kCluster == 1 || kSplit == 1, "a cluster shares tokens or a tile");
static_assert(kByWarps ? kScaleSums : kRowBlocks == 1, "wgmma takes a row block a warpgroup");

constexpr int kTiles = 4 * kConsumers * kRowBlocks;  // 16-row code tiles
constexpr int kRows = 16 * kTiles;
constexpr int kThreads = kWarpgroup * (kConsumers + 1);

// Of a thread, and where every warpgroup takes or leaves some of what a launch gives it.
constexpr int kLaunchRegisters = 65536 / (kBlocks * kThreads) / 8 * 8;
constexpr int kProducerRegisters =
    kConsumers == 4 || (kBlocks == 2 && kConsumers == 2) || kBlocks > 2 ? 32 : 40;
constexpr int kLeftRegisters =
    (kLaunchRegisters * (kConsumers + 1) - kProducerRegisters) / kConsumers / 8 * 8;
constexpr int kConsumerRegisters = kLeftRegisters > 232 ? 232 : kLeftRegisters;

constexpr int kSums = kRowBlocks * kTokens / 2;      // accumulators of a thread
// Tokens that pass to Y at a time; few where every block of a cluster is to add up a part of a tile.
constexpr int kStoreTokens =
    kTokens == 8 ? 8 : kTokens % 32 || kTokens * kConsumers < 32 * kSplit ? 16 : 32;
constexpr int kPart = kStoreTokens / 2;              // a thread's sums of one pass
constexpr int kParts = kSums / kPart;
constexpr int kPartBytes = kPart * 4 * kWarpgroup;

constexpr int kSliceBytes = kTokens * 128;           // tokens of a slice
constexpr int kTokenBytes = kSliceBytes * kSlices;
constexpr int kShareBytes = kSliceBytes / kCluster;
constexpr int kTileBytes = 512 * kSlices;            // a 16-row tile's codes of a stage
constexpr int kCodeBytes = kTiles * kTileBytes;
constexpr int kParamBytes = kTiles * 64;
constexpr int kStoreBytes = kStoreTokens * 64 * 2;   // one of a warpgroup's two buffers
constexpr int kOwnParts = (kConsumers * kParts + kSplit - 1) / kSplit;  // that a block adds up
constexpr int kSumBytes = kSplit > 1 ? kSplit * kOwnParts * kPartBytes : 0;

// Shared memory: the tokens of all stages (1024-byte aligned), codes, params, store buffers, what
// the other blocks of a split tile send, barriers.
struct Shared {
  u32 tokens, codes, params, store, sums, full, empty, summed;

  __device__ __forceinline__ explicit Shared(u32 base)
      : tokens(base),
        codes(tokens + kStages * kTokenBytes),
        params(codes + kStages * kCodeBytes),
        store(params + kStages * kParamBytes),
        sums(store + 2 * kConsumers * kStoreBytes),
        full(sums + kSumBytes),
        empty(full + 8 * kStages),
        summed(empty + 8 * kStages) {}
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
