// y = x · Wᵀ (+ bias) for up to 8 rows of x: x [M, K] BF16, W [N, K] in w4 tiles, y [M, N] BF16.
// sm_90 and up.
//
// x stands still: each of 16 consumer warps keeps two groups' inputs of all tokens in registers, while
// the row tiles stream past through a ring in shared memory, one a stage. Reducer warps add up what the
// warps made of a row tile. A block is dealt as many row tiles as the ring holds and draws the others
// one by one, so that the multiprocessors that memory serves more slowly take fewer; a row's sum does
// not depend on who computes it.
//
// Compile-time: W4_STAGES (of the ring).
// Launch: grid <= ceil(N / 16), best one block a multiprocessor; block 640 threads; dynamic shared
//   memory = 128 * ceil((20 * W4_STAGES + 40) / 128) + 16384 + 34816 * W4_STAGES bytes.
// K is at most 4096. x, codes and scales 16-byte aligned, y 4-byte.
// ticket: an int, zero before the first launch, left zero by every launch.
#include "w4_stationary_x.cuh"

namespace w4_stationary {

constexpr int kStages = W4_STAGES;
constexpr int kReducers = 2;  // each has its buffer of sums: a barrier tells only two phases apart
constexpr int kStageBytes = kTileGroups * (kCodeBytes + kScaleBytes);
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
    const u32 full = base + kFull + 8 * ring.stage;
    barrier_wait(base + kEmpty + 8 * ring.stage, ring.parity ^ 1);
    store_int(base + kTileOf + 4 * ring.stage, tile);
    const size_t at = static_cast<size_t>(tile) * groups;
    const u32 target = base + kRing + ring.stage * kStageBytes;
    barrier_expect(full, groups * (kCodeBytes + kScaleBytes));
    bulk_copy(target, p.codes + at * kCodeBytes, groups * kCodeBytes, full);
    bulk_copy(target + kTileGroups * kCodeBytes, p.scales + at * kScaleBytes, groups * kScaleBytes,
              full);
    ring.advance();
  };
#pragma unroll 1
  for (int i = 0; i < kStages; ++i) {
    const int tile = blockIdx.x + i * blocks;
    if (tile < tiles) fetch(tile);
  }
  // The predecessor may still draw tickets of its own.
  wait_for_predecessors();
  const int dealt = kStages * blocks, left = tiles - dealt;
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
__device__ __forceinline__ void hand_over(u32 base, u32 index, int tile, const float (&total)[4],
                                          int warp, int lane) {
  const u32 buffer = index % kReducers;
  barrier_wait(base + kSumEmpty + 8 * buffer, (index / kReducers & 1) ^ 1);
  store_partial(base + kPartials + (buffer * kWarps + warp) * kPartialBytes + 16 * lane, total);
  if (warp == 0 && lane == 0) store_int(base + kTileOfSum + 4 * buffer, tile);
  __syncwarp();
  if (lane == 0) barrier_arrive(base + kSumFull + 8 * buffer);
}

__device__ __forceinline__ void consume(const Problem& p, u32 base, int warp, int lane) {
  u32 codes = base + kRing + warp * kCodeBytes + 16 * lane;
  u32 scales = base + kRing + kTileGroups * kCodeBytes + warp * kScaleBytes + 8 * (lane / 4);
  keep(codes);
  keep(scales);
  const int groups = p.k / kGroup;
  wait_for_predecessors();
  StationaryX x;
  x.load(p, warp, lane);
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
      if (warp + j * kWarps >= groups) params[j] = {0, 0};
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

__device__ __forceinline__ void reduce(const Problem& p, u32 base, int buffer, int lane) {
  const u32 partials = base + kPartials + buffer * kWarps * kPartialBytes + 16 * lane;
  for (u32 parity = 0;; parity ^= 1) {
    barrier_wait(base + kSumFull + 8 * buffer, parity);
    const int tile = load_int(base + kTileOfSum + 4 * buffer);
    if (tile == kEnd) return;
    float sum[4] = {};
    add_partials(sum, partials);
    __syncwarp();
    if (lane == 0) barrier_arrive(base + kSumEmpty + 8 * buffer);
    store_rows(p, tile, sum, lane);
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
