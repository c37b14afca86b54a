// y = x · Wᵀ (+ bias) for few rows of x (decode): x [M, K] BF16, W [N, K] in w4 tiles, y [M, N] BF16.
// sm_90 and up.
//
// A block streams its row tiles one after another through one ring in shared memory: one lane
// issues bulk copies, the consumer warps share the groups of each stage, one more warp adds up what
// they made of a tile. With programmatic dependent launch a first stage fills while the kernel before
// this one drains; the others come behind x, which would have to wait for them.
//
// Macros: W4_NT (n8 tiles of tokens, M <= 8 * W4_NT), W4_WARPS (consumer warps), W4_CHUNK (groups of
// 128 inputs that a warp takes of a stage), W4_DEPTH (stages of the ring), W4_BLOCKS (wanted blocks
// of an SM, for registers).
// Launch: grid <= ceil(N / 16); best one or two blocks an SM. block = 32 * (W4_WARPS + 2).
//   dynamic shared memory = 128 * ceil((16 * W4_DEPTH + 40) / 128) + 1280 * W4_WARPS * W4_NT
//     + 1088 * W4_DEPTH * W4_WARPS * W4_CHUNK + M * (2 * K + 16)
// Alignment: x, codes and scales 16 bytes, y 4 bytes. No workspace.
#include "w4_decode_tile.cuh"

namespace w4_decode {

constexpr int kWarps = W4_WARPS;
constexpr int kChunk = W4_CHUNK;
constexpr int kDepth = W4_DEPTH;
constexpr int kEarly = 1;  // stages filled before the predecessor has ended
constexpr int kStageGroups = kWarps * kChunk;
constexpr int kStageBytes = kStageGroups * (kCodeBytes + kScaleBytes);
constexpr int kLanePairs = kPairs / 32;
constexpr int kConsumers = 32 * kWarps;
constexpr int kThreads = kConsumers + 64;

// Shared memory, from its start.
constexpr int kFull = 0;                             // kDepth barriers: a stage has arrived
constexpr int kEmpty = kFull + 8 * kDepth;           // kDepth: a stage has been read
constexpr int kXFull = kEmpty + 8 * kDepth;          // x has arrived
constexpr int kSumFull = kXFull + 8;                 // 2: the warps' partial sums are written
constexpr int kSumEmpty = kSumFull + 16;             // 2: ... and read
constexpr int kBarriers = kSumEmpty + 16;
constexpr int kPartials = (kBarriers + 127) / 128 * 128;
constexpr int kRing = kPartials + 2 * kWarps * kPartialFloats * 4;
constexpr int kX = kRing + kDepth * kStageBytes;

// A place in the block's walk: its row tiles one after another, each through the block's groups.
struct Position {
  int tile, group;  // both relative to the block's first
  const Share& tiles;
  const Share& groups;

  __device__ __forceinline__ bool done() const { return tile >= tiles.count; }
  __device__ __forceinline__ int count() const { return min(kStageGroups, groups.count - group); }
  __device__ __forceinline__ void advance() {
    group += kStageGroups;
    if (group >= groups.count) group = 0, ++tile;
  }
  __device__ __forceinline__ size_t at(int k) const {
    return static_cast<size_t>(tiles.first + tile) * (k / kGroup) + groups.first + group;
  }
};

// ---- the producer: one lane ---------------------------------------------------------------------

__device__ __forceinline__ void fetch_x(const Problem& p, u32 base, u32 x_shared, int pitch) {
  const int bytes = 2 * p.k;
  barrier_expect(base + kXFull, p.m * bytes);
  for (int row = 0; row < p.m; ++row)
    bulk_copy(x_shared + row * pitch, p.x + static_cast<size_t>(row) * p.k, bytes, base + kXFull);
}

__device__ __forceinline__ void produce(const Problem& p, const Share& tiles, const Share& groups,
                                        u32 base, u32 x_shared, int pitch) {
  Position next{0, 0, tiles, groups};
  int slot = 0;
  const auto fetch = [&]() {
    const size_t at = next.at(p.k);
    const int count = next.count();
    const u32 full = base + kFull + 8 * slot, target = base + kRing + slot * kStageBytes;
    barrier_expect(full, count * (kCodeBytes + kScaleBytes));
    bulk_copy(target, p.codes + at * kCodeBytes, count * kCodeBytes, full);
    bulk_copy(target + kStageGroups * kCodeBytes, p.scales + at * kScaleBytes, count * kScaleBytes,
              full);
    next.advance();
    if (++slot == kDepth) slot = 0;
  };
  for (int i = 0; i < kEarly && !next.done(); ++i) fetch();
  wait_for_predecessors();
  fetch_x(p, base, x_shared, pitch);
  for (int i = kEarly; i < kDepth && !next.done(); ++i) fetch();
  u32 parity = 0;
  while (!next.done()) {
    barrier_wait(base + kEmpty + 8 * slot, parity);
    const int before = slot;
    fetch();
    if (slot < before || kDepth == 1) parity ^= 1;
  }
}

// ---- the consumers ------------------------------------------------------------------------------

__device__ __forceinline__ void consume(const Problem& p, const Share& tiles, const Share& groups,
                                        u32 base, u32 x_shared, int pitch, int warp, int lane) {
  u32 x_rows[kNT];
  find_rows(x_rows, x_shared, pitch, p.m, lane);
  barrier_wait(base + kXFull, 0);
  const u32 codes = base + kRing + warp * kChunk * kCodeBytes + 16 * lane;
  const u32 scales =
      base + kRing + kStageGroups * kCodeBytes + warp * kChunk * kScaleBytes + 8 * (lane / 4);
  int slot = 0;
  u32 parity = 0;
  for (int index = 0; index < tiles.count; ++index) {
    float total[kNT][4] = {};
    for (int done = 0; done < groups.count; done += kStageGroups) {
      barrier_wait(base + kFull + 8 * slot, parity);
      const int first = done + warp * kChunk;
      const auto load = [&](Group& group, int i) {
        load_group(group, codes + slot * kStageBytes + i * kCodeBytes,
                   scales + slot * kStageBytes + i * kScaleBytes, x_rows,
                   (first + i) * 2 * kGroup);
      };
      const auto release = [&]() {
        __syncwarp();
        if (lane == 0) barrier_arrive(base + kEmpty + 8 * slot);
      };
      if (first + kChunk <= groups.count) {
        Group group[kChunk];
#pragma unroll
        for (int i = 0; i < kChunk; ++i) load(group[i], i);
        release();
#pragma unroll
        for (int i = 0; i < kChunk; ++i) add_group(total, group[i]);
      } else {
#pragma unroll 1
        for (int i = 0; first + i < groups.count; ++i) {
          Group group;
          load(group, i);
          add_group(total, group);
        }
        release();
      }
      if (++slot == kDepth) slot = 0, parity ^= 1;
    }
    const int buffer = index & 1;
    barrier_wait(base + kSumEmpty + 8 * buffer, ((index >> 1) & 1) ^ 1);
    store_partial(base + kPartials + 4 * (buffer * kWarps + warp) * kPartialFloats, total, lane);
    __syncwarp();
    if (lane == 0) barrier_arrive(base + kSumFull + 8 * buffer);
  }
}

// ---- the reducer: one warp ----------------------------------------------------------------------

__device__ __forceinline__ void reduce(const Problem& p, const Share& tiles, u32 base, int lane) {
  for (int index = 0; index < tiles.count; ++index) {
    const int buffer = index & 1;
    barrier_wait(base + kSumFull + 8 * buffer, (index >> 1) & 1);
    float2 sum[kLanePairs];
#pragma unroll
    for (int j = 0; j < kLanePairs; ++j)
      sum[j] = add_partials<kWarps>(base + kPartials + 4 * buffer * kWarps * kPartialFloats,
                                    32 * j + lane);
    __syncwarp();
    if (lane == 0) barrier_arrive(base + kSumEmpty + 8 * buffer);
#pragma unroll
    for (int j = 0; j < kLanePairs; ++j) store_pair(p, tiles.first + index, 32 * j + lane, sum[j]);
  }
}

extern __shared__ __align__(128) unsigned char shared_memory[];

}  // namespace w4_decode

extern "C" __global__ void __launch_bounds__(w4_decode::kThreads, W4_BLOCKS)
    w4_decode_kernel(const unsigned char* codes, const unsigned char* scales, const unsigned short* x,
                     const unsigned short* bias, unsigned short* y, int m, int n, int k) {
  using namespace w4_decode;
  launch_dependents();
  const Problem p{codes, scales, x, bias, y, m, n, k};
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const u32 base = shared_address(shared_memory);
  const Share tiles = share_of((n + 15) / 16, gridDim.x, blockIdx.x);
  const Share groups{0, k / kGroup};
  const int pitch = 2 * k + 16;
  const u32 x_shared = base + kX;

  if (threadIdx.x == 0) {
    for (int i = 0; i < kDepth; ++i) {
      barrier_init(base + kFull + 8 * i, 1);
      barrier_init(base + kEmpty + 8 * i, kWarps);
    }
    barrier_init(base + kXFull, 1);
    for (int i = 0; i < 2; ++i) {
      barrier_init(base + kSumFull + 8 * i, kWarps);
      barrier_init(base + kSumEmpty + 8 * i, 1);
    }
    barrier_init_fence();
  }
  __syncthreads();

  if (warp < kWarps) {
    consume(p, tiles, groups, base, x_shared, pitch, warp, lane);
  } else if (warp == kWarps) {
    if (lane == 0) produce(p, tiles, groups, base, x_shared, pitch);
  } else {
    reduce(p, tiles, base, lane);
  }
}
