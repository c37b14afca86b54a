// y = x · Wᵀ (+ bias) for up to 8 rows of x: x [M, K] BF16, W [N, K] in w4 tiles, y [M, N] BF16.
// sm_90 and up.
//
// x stands still: each of 16 consumer warps keeps two groups' inputs of all tokens in registers, while
// the row tiles stream past through a ring in shared memory, one a stage. Reducer warps add up what the
// warps made of a row tile. A block is dealt as many row tiles as the ring holds and draws the others
// one by one, so that the multiprocessors that memory serves more slowly take fewer; a row's sum does
// not depend on who computes it. More than 4096 inputs are cut in slices, one for each block of a
// cluster, which then have their row tiles dealt (w4_stationary_slices.cuh).
//
// Weights that are under way stand before the inputs. So only some stages are filled before the
// predecessor has ended, and the others behind the inputs, if need be once these have come.
//
// Compile-time: W4_STAGES (of the ring), W4_EARLY (filled before the predecessor has ended),
//   W4_INPUTS_FIRST (1: the others wait for the inputs), W4_SLICES (1, or the blocks of a cluster).
// Launch: grid <= ceil(N / 16), best one block a multiprocessor; block 640 threads; dynamic shared
//   memory = 128 * ceil((20 * W4_STAGES + 48) / 128) + 16384 + 34816 * W4_STAGES bytes.
//   With slices: a multiple of W4_SLICES blocks, of which each ends at most 3 row tiles; 24 barrier
//   bytes and 1536 * W4_SLICES bytes more.
// K is at most 4096 * W4_SLICES. x, codes and scales 16-byte aligned, y 4-byte.
// ticket: an int, zero before the first launch, left zero by every launch.
#include "w4_stationary_slices.cuh"

namespace w4_stationary {

constexpr int kStages = W4_STAGES;
constexpr int kReducers = 2;  // each has its buffer of sums: a barrier tells only two phases apart
constexpr int kStageBytes = kTileGroups * (kCodeBytes + kScaleBytes);
constexpr int kThreads = 32 * (kWarps + 4);  // registers pass between groups of four warps
constexpr int kConsumerRegisters = 112, kOtherRegisters = 32;
constexpr int kEnd = -1;  // in place of a row tile
constexpr int kEarly = W4_EARLY;

// Shared memory, from its start.
constexpr int kFull = 0;                                // kStages barriers: a stage has arrived
constexpr int kEmpty = kFull + 8 * kStages;             // kStages: a stage has been read
constexpr int kEnded = kEmpty + 8 * kStages;            // kSlots: the sums of the slices are there
constexpr int kInputsRead = kEnded + 8 * kSlots;        // the inputs are in registers
constexpr int kSumFull = kInputsRead + 8;               // kReducers: the warps' sums are written
constexpr int kSumEmpty = kSumFull + 8 * kReducers;     // kReducers: ... and read
constexpr int kTileOf = kSumEmpty + 8 * kReducers;      // the row tile of a stage
constexpr int kTileOfSum = kTileOf + 4 * kStages;       // of a buffer of sums
constexpr int kPartials = (kTileOfSum + 4 * kReducers + 127) / 128 * 128;
constexpr int kSliceSums = kPartials + kReducers * kWarps * kPartialBytes;
constexpr int kRing = kSliceSums + kSlots * kSlotBytes;

struct Ring {
  int stage = 0;
  u32 parity = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
};

__device__ __forceinline__ void store_int(u32 address, int value) {
  asm volatile("st.shared.s32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}

__device__ __forceinline__ int load_int(u32 address) {
  int value;
  asm volatile("ld.shared.s32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
  return value;
}

// ---- the producer: one lane ---------------------------------------------------------------------

__device__ __forceinline__ void produce(const Problem& p, const Share& share, u32 base, int* ticket) {
  const int tiles = share.tiles, groups = share.groups;
  Ring ring;
  const auto fetch = [&](int tile) {
    const u32 full = base + kFull + 8 * ring.stage;
    barrier_wait(base + kEmpty + 8 * ring.stage, ring.parity ^ 1);
    store_int(base + kTileOf + 4 * ring.stage, tile);
    const size_t at = static_cast<size_t>(tile) * (p.k / kGroup) + share.first_group;
    const u32 target = base + kRing + ring.stage * kStageBytes;
    barrier_expect(full, groups * (kCodeBytes + kScaleBytes));
    bulk_copy(target, p.codes + at * kCodeBytes, groups * kCodeBytes, full);
    bulk_copy(target + kTileGroups * kCodeBytes, p.scales + at * kScaleBytes, groups * kScaleBytes,
              full);
    ring.advance();
  };
  const int dealt = kStages * share.step, early = kEarly * share.step;
#pragma unroll 1
  for (int tile = share.first_tile; tile < min(early, tiles); tile += share.step) fetch(tile);
  // The predecessor may still draw tickets of its own.
  wait_for_predecessors();
  if constexpr (W4_INPUTS_FIRST) barrier_wait(base + kInputsRead, 0);
#pragma unroll 1
  for (int tile = early + share.first_tile; tile < min(dealt, tiles); tile += share.step) fetch(tile);
  if constexpr (kSlices > 1) {
#pragma unroll 1
    for (int tile = dealt + share.first_tile; tile < tiles; tile += share.step) fetch(tile);
  } else if (const int left = tiles - dealt; left > 0) {
    int next = atomicAdd(ticket, 1);
    while (next < left) {
      const int upcoming = atomicAdd(ticket, 1);
      fetch(dealt + next);
      next = upcoming;
    }
    if (next == left + share.step - 1) *ticket = 0;  // The last one of all.
  }
  barrier_wait(base + kEmpty + 8 * ring.stage, ring.parity ^ 1);
  store_int(base + kTileOf + 4 * ring.stage, kEnd);
  barrier_arrive(base + kFull + 8 * ring.stage);
}

// ---- the consumers ------------------------------------------------------------------------------

// index: of the row tile among the block's.
__device__ __forceinline__ void hand_over(u32 base, u32 index, int tile, const float (&total)[4],
                                          int warp, int lane) {
  const u32 buffer = index % kReducers;
  barrier_wait(base + kSumEmpty + 8 * buffer, (index / kReducers & 1) ^ 1);
  store_partial(base + kPartials + (buffer * kWarps + warp) * kPartialBytes + 16 * lane, total);
  if (warp == 0 && lane == 0) store_int(base + kTileOfSum + 4 * buffer, tile);
  __syncwarp();
  if (lane == 0) barrier_arrive(base + kSumFull + 8 * buffer);
}

__device__ __forceinline__ void consume(const Problem& p, const Share& share, u32 base, int warp,
                                        int lane) {
  u32 codes = base + kRing + warp * kCodeBytes + 16 * lane;
  u32 scales = base + kRing + kTileGroups * kCodeBytes + warp * kScaleBytes + 8 * (lane / 4);
  keep(codes);
  keep(scales);
  wait_for_predecessors();
  StationaryX x;
  x.load(p, share.first_group + warp, share.first_group + share.groups, lane);
  if constexpr (W4_INPUTS_FIRST) {
    __syncwarp();
    if (lane == 0) barrier_arrive(base + kInputsRead);
  }
  Ring ring;
  u32 index = 0;
  for (;; ++index) {
    barrier_wait(base + kFull + 8 * ring.stage, ring.parity);
    const int tile = load_int(base + kTileOf + 4 * ring.stage);
    if (tile == kEnd) break;
    uint4 words[kWarpGroups][2];
    uint2 params[kWarpGroups];
#pragma unroll
    for (int j = 0; j < kWarpGroups; ++j) {
      const u32 at = ring.stage * kStageBytes + j * kWarps * kCodeBytes;
      words[j][0] = load_shared_16(codes + at);
      words[j][1] = load_shared_16(codes + at + 512);
      params[j] = load_shared_8(scales + ring.stage * kStageBytes + j * kWarps * kScaleBytes);
      // What lies there belongs to another row tile; the inputs of such a group are all 0.
      if (warp + j * kWarps >= share.groups) params[j] = {0, 0};
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(base + kEmpty + 8 * ring.stage);
    ring.advance();
    float total[4] = {};
#pragma unroll
    for (int j = 0; j < kWarpGroups; ++j) x.add_group(total, j, words[j], params[j]);
    hand_over(base, index, tile, total, warp, lane);
  }
  const float nothing[4] = {};
  for (int i = 0; i < kReducers; ++i) hand_over(base, index + i, kEnd, nothing, warp, lane);
}

// ---- the reducers -------------------------------------------------------------------------------

__device__ __forceinline__ void reduce(const Problem& p, const Share& share, u32 base, int buffer,
                                       int lane) {
  const u32 partials = base + kPartials + buffer * kWarps * kPartialBytes + 16 * lane;
  for (u32 parity = 0;; parity ^= 1) {
    barrier_wait(base + kSumFull + 8 * buffer, parity);
    const int tile = load_int(base + kTileOfSum + 4 * buffer);
    if (tile == kEnd) return;
    float sum[4] = {};
    add_partials(sum, partials);
    __syncwarp();
    if (lane == 0) barrier_arrive(base + kSumEmpty + 8 * buffer);
    if constexpr (kSlices > 1)
      send(share, base + kSliceSums, base + kEnded, tile, sum, lane);
    else
      store_rows(p, tile, sum, lane);
  }
}

extern __shared__ __align__(128) unsigned char shared_memory[];

}  // namespace w4_stationary

extern "C" __global__ void __launch_bounds__(w4_stationary::kThreads, 1)
#if W4_SLICES > 1
    __cluster_dims__(W4_SLICES, 1, 1)
#endif
    w4_stationary_kernel(const unsigned char* codes, const unsigned char* scales,
                         const unsigned short* x, const unsigned short* bias, unsigned short* y,
                         int* ticket, int m, int n, int k) {
  using namespace w4_stationary;
  launch_dependents();
  const Problem p{codes, scales, x, bias, y, m, n, k};
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  const u32 base = shared_address(shared_memory);

  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(base + kFull + 8 * i, 1);
      barrier_init(base + kEmpty + 8 * i, kWarps);
    }
    for (int i = 0; i < kReducers; ++i) {
      barrier_init(base + kSumFull + 8 * i, kWarps);
      barrier_init(base + kSumEmpty + 8 * i, 1);
    }
    expect_slices(base + kEnded);
    barrier_init(base + kInputsRead, kWarps);
    barrier_init_fence();
  }
  meet();

  const Share share(p);
  if (warp < kWarps) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kConsumerRegisters));
    consume(p, share, base, warp, lane);
  } else {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kOtherRegisters));
    if (warp == kWarps) {
      if (lane == 0) produce(p, share, base, ticket);
    } else if (warp <= kWarps + kReducers) {
      reduce(p, share, base, warp - kWarps - 1, lane);
    } else if constexpr (kSlices > 1) {
      join(p, share, base + kSliceSums, base + kEnded, lane);
    }
  }
}
