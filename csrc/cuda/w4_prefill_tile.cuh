// Sizes of a block's tile, its shared memory and the position in its ring of stages.
#pragma once

#ifndef W4_TOKENS
#define W4_TOKENS 256
#endif
#ifndef W4_ROW_BLOCKS
#define W4_ROW_BLOCKS 1
#endif
#ifndef W4_CONSUMERS
#define W4_CONSUMERS 2
#endif
#ifndef W4_ROW_TILES
#define W4_ROW_TILES (4 * W4_CONSUMERS * W4_ROW_BLOCKS)
#endif
#ifndef W4_CLUSTER
#define W4_CLUSTER 1
#endif
#ifndef W4_SPLIT
#define W4_SPLIT 1
#endif
#ifndef W4_STAGES
#define W4_STAGES 5
#endif
#ifndef W4_SLICES
#define W4_SLICES 1
#endif
#ifndef W4_SUBNORMAL
#define W4_SUBNORMAL 0
#endif
#ifndef W4_TURNS
#define W4_TURNS 0
#endif
#ifndef W4_DIRECT
#define W4_DIRECT 0
#endif
#ifndef W4_BATCH
#define W4_BATCH 1
#endif
#ifndef W4_SCALE_SUMS
#define W4_SCALE_SUMS 0
#endif
#ifndef W4_MMA_SYNC
#define W4_MMA_SYNC 0
#endif
#ifndef W4_FETCHED
#define W4_FETCHED W4_TOKENS
#endif
#ifndef W4_BARE
#define W4_BARE 0
#endif
#ifndef W4_BLOCKS
#define W4_BLOCKS 1
#endif

#include "w4_prefill_async.cuh"

namespace w4_prefill {

constexpr int kWarpgroup = 128;
constexpr int kTokens = W4_TOKENS;
constexpr int kFetched = W4_FETCHED;  // tokens of a tile that are there to be multiplied
constexpr int kRowBlocks = W4_ROW_BLOCKS;
constexpr int kConsumers = W4_CONSUMERS;  // warpgroups
constexpr int kCluster = W4_CLUSTER;      // blocks that share tokens
constexpr int kSplit = W4_SPLIT;          // blocks that share a tile, each a part of K
constexpr int kStages = W4_STAGES;
constexpr int kSlices = W4_SLICES;        // of 64 inputs, of a stage
constexpr int kBatch = W4_BATCH;          // k16 steps that are dequantized and multiplied at a time
constexpr bool kScaleSums = W4_SCALE_SUMS;  // scales meet a group's sums, not the weights
constexpr int kSubnormal = W4_SUBNORMAL;  // codes as subnormal numbers: fewer shifts
constexpr bool kTurns = W4_TURNS;        // two sets of sums in turn
constexpr bool kMmaSync = W4_MMA_SYNC;  // mma.sync instead of wgmma
constexpr bool kBare = W4_BARE;  // for measurements: copies and edges without arithmetic
constexpr int kBlocks = W4_BLOCKS;        // on a multiprocessor at once
static_assert(kCluster == 1 || kSplit == 1, "a cluster shares tokens or a tile");
static_assert(kSlices == 1 || kSlices == 2, "a stage is half a group or one");

// 16-row code tiles a block; what warps have beyond them is the last one again, for nothing.
constexpr int kTiles = W4_ROW_TILES;
constexpr int kRows = 16 * kTiles;
static_assert(kTiles <= 4 * kConsumers * kRowBlocks, "more rows than warps hold");
constexpr int kThreads = kWarpgroup * (kConsumers + 1);
static_assert(!kMmaSync || (kSlices == 2 && kScaleSums && kSubnormal == 1), "one way each");
static_assert(kFetched == kTokens || kMmaSync, "wgmma multiplies all tokens");

// Of a thread, and where every warpgroup takes or leaves some of what a launch gives it.
constexpr int kLaunchRegisters = 65536 / (kBlocks * kThreads) / 8 * 8;
constexpr int kProducerRegisters =
    kConsumers == 4 || (kBlocks == 2 && kConsumers == 2) || kBlocks > 2 ? 32 : 40;
constexpr int kLeftRegisters =
    (kLaunchRegisters * (kConsumers + 1) - kProducerRegisters) / kConsumers / 8 * 8;
constexpr int kConsumerRegisters = kLeftRegisters > 232 ? 232 : kLeftRegisters;

constexpr int kSums = kRowBlocks * kTokens / 2;      // accumulators of a thread
constexpr int kBlockSums = kTokens / 2;              // those of 64 rows
// Tokens that pass to Y at a time; few where every block of a cluster is to add up a part of a tile.
constexpr int kStoreTokens = kTokens % 32 || kTokens * kConsumers < 32 * kSplit ? 16 : 32;
constexpr int kPart = kStoreTokens / 2;              // a thread's sums of one pass
constexpr int kParts = kSums / kPart;
constexpr int kPartBytes = kPart * 4 * kWarpgroup;

constexpr int kSliceBytes = kFetched * 128;          // tokens of a slice
constexpr int kTokenBytes = kSliceBytes * kSlices;
constexpr int kShareBytes = kSliceBytes / kCluster;
constexpr int kTileBytes = 512 * kSlices;            // a 16-row tile's codes of a stage
constexpr int kCodeBytes = kTiles * kTileBytes;
constexpr int kParamBytes = kTiles * 64;
constexpr int kParamStride = (kParamBytes + 127) / 128 * 128;
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
        store(params + kStages * kParamStride),
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
