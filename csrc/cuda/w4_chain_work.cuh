// What a launch of w4_chain.cu computes, which part of it a block does, and where it keeps what.
#pragma once

#include "w4_chain_ptx.cuh"

namespace w4_chain {

constexpr int kTokenTiles = W4_TOKENS / 8;  // of 8 tokens, of a block
constexpr int kPair = W4_PAIR;              // blocks of a cluster: each has tokens of its own
constexpr int kStages = W4_STAGES;
static_assert(kPair == 1 || kStages % 2 == 0, "the blocks of a pair fetch stages in turn");

constexpr int kWarps = 16;
constexpr int kUnitStages = 2;     // stages of a row tile, which are groups of a warp
constexpr int kGroup = 128;
constexpr int kCodeBytes = 1024;   // of 16 rows and one group
constexpr int kScaleBytes = 64;    // of 16 rows and one group
constexpr int kStageGroups = kWarps;
constexpr int kStageBytes = kStageGroups * (kCodeBytes + kScaleBytes);
constexpr int kPairsOfWarp = W4_TOKENS / 2;         // pairs of a row tile's sums that a warp adds up
constexpr int kShares = 32 / kPairsOfWarp;          // lanes that share in one
constexpr int kPartialBytes = 512 * kTokenTiles + 64;  // a warp's sums; neighbours' begin in other banks
constexpr int kEnd = -1;           // in place of a row tile: the linear's end
constexpr int kMostSlices = 4;
constexpr int kThreads = 32 * (kWarps + 4);  // registers pass between groups of four warps
constexpr int kConsumerRegisters = 112, kProducerRegisters = 32;

// One linear of the chain; slices: blocks that share a row tile along K, each with its inputs.
struct Linear {
  const unsigned char* codes;
  const unsigned char* scales;
  const u16* x;
  const u16* bias;
  u16* y;
  int n, k, slices;
};

struct Chain {
  Linear linear[W4_LINEARS];
  int count, m;
};

// What blocks share, all zero before the first launch. packets: of the linear with the most,
// row tiles * slices * tokens of a cluster * 8. meeting: counts arrivals, left zero by every launch.
// mark: of the last meeting that was. tickets: kMostSlices of each linear, left zero.
struct Common {
  Packets* packets;
  int* meeting;
  u32* mark;
  int* tickets;
};

// Of a cluster: its slice of a linear's groups, and its row tiles, every `step`-th from `first` on.
struct Share {
  int first_group, groups, slice;
  int first_tile, step, tiles;

  __device__ __forceinline__ explicit Share(const Linear& linear) {
    const int all = linear.k / kGroup;
    const int workers = gridDim.x / kPair, worker = blockIdx.x / kPair;
    slice = worker % linear.slices;
    first_group = all * slice / linear.slices;
    groups = all * (slice + 1) / linear.slices - first_group;
    first_tile = worker / linear.slices;
    step = (workers - slice + linear.slices - 1) / linear.slices;
    tiles = (linear.n + 15) / 16;
  }
};

// Shared memory, from its start.
constexpr int kFull = 0;                                // kStages barriers: a stage has arrived
constexpr int kEmpty = kFull + 8 * kStages;             // kStages: a stage has been read
constexpr int kSummed = kEmpty + 8 * kStages;           // 2: the warps' sums of a row tile are written
constexpr int kMark = kSummed + 16;                     // of the launch's first meeting
constexpr int kTileOfSum = kMark + 4;                   // 2: the row tile whose sums are written
constexpr int kTileOf = kTileOfSum + 8;                 // the row tile of a stage
constexpr int kPartials = (kTileOf + 4 * kStages + 127) / 128 * 128;  // of two row tiles
constexpr int kInputs = kPartials + 2 * kWarps * kPartialBytes;  // sums of groups' inputs
constexpr int kInputBytes = kUnitStages * W4_TOKENS * 4;                // of a warp
constexpr int kRing = kInputs + kWarps * kInputBytes;

struct Ring {
  int stage = 0;
  u32 parity = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
};

__device__ __forceinline__ u32 rank_in_pair() {
  if constexpr (kPair == 1) return 0;
  return cluster_rank();
}

#ifdef W4_TRACE
__device__ u64 w4_trace[33][132][8];
__device__ __forceinline__ u64 now() {
  u64 t;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t)::"memory");
  return t;
}
#define STAMP(i, slot) \
  if (threadIdx.x == 0 || threadIdx.x == 32 * kWarps) w4_trace[i][blockIdx.x][slot] = now()
#else
#define STAMP(i, slot) ((void)0)
#endif

}  // namespace w4_chain
