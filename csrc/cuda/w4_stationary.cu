// y = x · Wᵀ (+ bias) for up to 8 rows of x: x [M, K] BF16, W [N, K] in w4 tiles, y [M, N] BF16.
// sm_90 and up.
//
// x stands still: each of 16 consumer warps keeps two groups' inputs of all tokens in registers, while
// the row tiles stream past through a ring in shared memory. A stage holds 16 groups of one row tile,
// one a warp. Reducer warps add up what the warps made of a row tile. A block is dealt as many row
// tiles as the ring holds and draws the others one by one, so that the multiprocessors that memory
// serves more slowly take fewer; a row's sum does not depend on who computes it.
//
// Compile-time: W4_STAGES (of the ring).
// Launch: grid <= ceil(N / 16), best one block a multiprocessor; block 640 threads; dynamic shared
//   memory = 128 * ceil((20 * W4_STAGES + 40) / 128) + 16384 + 17408 * W4_STAGES bytes.
// K is at most 4096. x, codes and scales 16-byte aligned, y 4-byte.
// ticket: an int, zero before the first launch, left zero by every launch.
#include "w4_stationary_x.cuh"

namespace w4_stationary {

constexpr int kStages = W4_STAGES;
constexpr int kReducers = 2;  // each has its buffer of sums: a barrier tells only two phases apart
constexpr int kStageBytes = kStageGroups * (kCodeBytes + kScaleBytes);
constexpr int kThreads = 32 * (kWarps + 4);  // registers pass between groups of four warps
constexpr int kConsumerRegisters = 112, kOtherRegisters = 32;
constexpr int kEnd = -1;  // in place of a row tile

// Shared memory, from its start.
constexpr int kFull = 0;                                // kStages barriers: a stage has arrived
constexpr int kEmpty = kFull + 8 * kStages;             // kStages: a stage has been read
constexpr int kSumFull = kEmpty + 8 * kStages;          // kReducers: the warps' sums are written
constexpr int kSumEmpty = kSumFull + 8 * kReducers;     // kReducers: ... and read
constexpr int kTileOf = kSumEmpty + 8 * kReducers;      // the row tile of a stage
constexpr int kTileOfSum = kTileOf + 4 * kStages;       // of a buffer of sums
constexpr int kPartials = (kTileOfSum + 4 * kReducers + 127) / 128 * 128;
constexpr int kRing = kPartials + kReducers * kWarps * kPartialBytes;

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

__device__ __forceinline__ void produce(const Problem& p, u32 base, int* ticket) {
  const int tiles = (p.n + 15) / 16, groups = p.k / kGroup, blocks = gridDim.x;
  Ring ring;
  const auto fetch = [&](int tile) {
#pragma unroll 1
    for (int j = 0; j < kUnitStages; ++j) {
      const u32 full = base + kFull + 8 * ring.stage;
      barrier_wait(base + kEmpty + 8 * ring.stage, ring.parity ^ 1);
      store_int(base + kTileOf + 4 * ring.stage, tile);
      const int count = min(kStageGroups, groups - j * kStageGroups);
      if (count > 0) {
        const size_t at = static_cast<size_t>(tile) * groups + j * kStageGroups;
        const u32 target = base + kRing + ring.stage * kStageBytes;
        barrier_expect(full, count * (kCodeBytes + kScaleBytes));
        bulk_copy(target, p.codes + at * kCodeBytes, count * kCodeBytes, full);
        bulk_copy(target + kStageGroups * kCodeBytes, p.scales + at * kScaleBytes,
                  count * kScaleBytes, full);
      } else {
        barrier_arrive(full);
      }
      ring.advance();
    }
  };
  constexpr int kDealt = (kStages + kUnitStages - 1) / kUnitStages;
#pragma unroll 1
  for (int i = 0; i < kDealt; ++i) {
    const int tile = blockIdx.x + i * blocks;
    if (tile < tiles) fetch(tile);
  }
  // The predecessor may still draw tickets of its own.
  wait_for_predecessors();
  const int dealt = kDealt * blocks, left = tiles - dealt;
  if (left > 0) {
    int next = atomicAdd(ticket, 1);
    while (next < left) {
      const int upcoming = atomicAdd(ticket, 1);
      fetch(dealt + next);
      next = upcoming;
    }
    if (next == left + blocks - 1) *ticket = 0;  // The last one of all.
  }
  barrier_wait(base + kEmpty + 8 * ring.stage, ring.parity ^ 1);
  store_int(base + kTileOf + 4 * ring.stage, kEnd);
  barrier_arrive(base + kFull + 8 * ring.stage);
}

// ---- the consumers ------------------------------------------------------------------------------

// index: of the row tile among the block's.
__device__ __forceinline__ void hand_over(u32 base, int index, int tile, const float (&total)[4],
                                          int warp, int lane) {
  const int buffer = index % kReducers;
  barrier_wait(base + kSumEmpty + 8 * buffer, ((index / kReducers) & 1) ^ 1);
  if (tile != kEnd)
    store_partial(base + kPartials + (buffer * kWarps + warp) * kPartialBytes, total, lane);
  if (warp == 0 && lane == 0) store_int(base + kTileOfSum + 4 * buffer, tile);
  __syncwarp();
  if (lane == 0) barrier_arrive(base + kSumFull + 8 * buffer);
}

__device__ __forceinline__ void consume(const Problem& p, u32 base, int warp, int lane) {
  wait_for_predecessors();
  StationaryX x;
  x.load(p, warp, lane);
  const int groups = p.k / kGroup;
  const u32 codes = base + kRing + warp * kCodeBytes + 16 * lane;
  const u32 scales = base + kRing + kStageGroups * kCodeBytes + warp * kScaleBytes + 8 * (lane / 4);
  Ring ring;
  int index = 0;
  for (;; ++index) {
    float total[4] = {};
    int tile = kEnd;
#pragma unroll
    for (int j = 0; j < kUnitStages; ++j) {
      barrier_wait(base + kFull + 8 * ring.stage, ring.parity);
      if (j == 0) {
        tile = load_int(base + kTileOf + 4 * ring.stage);
        if (tile == kEnd) break;
      }
      const bool mine = warp < groups - j * kStageGroups;
      uint4 words[2];
      uint2 params;
      if (mine) {
        words[0] = load_shared_16(codes + ring.stage * kStageBytes);
        words[1] = load_shared_16(codes + ring.stage * kStageBytes + 512);
        params = load_shared_8(scales + ring.stage * kStageBytes);
      }
      __syncwarp();
      if (lane == 0) barrier_arrive(base + kEmpty + 8 * ring.stage);
      if (mine) x.add_group(total, j, words, params);
      ring.advance();
    }
    if (tile == kEnd) break;
    hand_over(base, index, tile, total, warp, lane);
  }
  const float nothing[4] = {};
  for (int i = 0; i < kReducers; ++i) hand_over(base, index + i, kEnd, nothing, warp, lane);
}

// ---- the reducers -------------------------------------------------------------------------------

__device__ __forceinline__ void reduce(const Problem& p, u32 base, int buffer, int lane) {
  for (u32 parity = 0;; parity ^= 1) {
    barrier_wait(base + kSumFull + 8 * buffer, parity);
    const int tile = load_int(base + kTileOfSum + 4 * buffer);
    if (tile == kEnd) return;
    float2 sum[kLanePairs];
#pragma unroll
    for (int j = 0; j < kLanePairs; ++j)
      if (4 * j < p.m)
        sum[j] = add_partials(base + kPartials + buffer * kWarps * kPartialBytes, 32 * j + lane);
    __syncwarp();
    if (lane == 0) barrier_arrive(base + kSumEmpty + 8 * buffer);
#pragma unroll
    for (int j = 0; j < kLanePairs; ++j)
      if (4 * j < p.m) store_pair(p, tile, 32 * j + lane, sum[j]);
  }
}

extern __shared__ __align__(128) unsigned char shared_memory[];

}  // namespace w4_stationary

extern "C" __global__ void __launch_bounds__(w4_stationary::kThreads, 1)
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
    barrier_init_fence();
  }
  __syncthreads();

  if (warp < kWarps) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kConsumerRegisters));
    consume(p, base, warp, lane);
  } else {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kOtherRegisters));
    if (warp == kWarps) {
      if (lane == 0) produce(p, base, ticket);
    } else if (warp <= kWarps + kReducers) {
      reduce(p, base, warp - kWarps - 1, lane);
    }
  }
}
