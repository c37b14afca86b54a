// y = x · Wᵀ (+ bias) for 17 to 64 rows of x (decode of a busy server): x [M, K] BF16 through a
// tensor map, W [N, K] in w4 tiles, y [M, N] BF16. sm_90a.
//
// Macros: W4_TOKENS (8, 16, 32 or 64, >= M), W4_GROUPS (warpgroups that multiply, 64 rows each),
// W4_BUFFERS (2: dequantize half a group while the other half multiplies), W4_SPLIT (blocks of a
// cluster, each with a share of K), W4_CHUNK (groups of 128 inputs in a stage of the weights' ring),
// W4_DEPTH (its stages), W4_BLOCKS (wanted blocks of an SM, for registers).
// Launch: grid = Q * W4_SPLIT, Q <= ceil(N / 16); cluster = W4_SPLIT; block = 128 * W4_GROUPS + 64.
//   fixed = 4352 * W4_GROUPS * W4_DEPTH * W4_CHUNK + 16 * W4_DEPTH + 512 + 64 * W4_GROUPS
//     + (W4_SPLIT > 1 ? 1024 * W4_GROUPS * W4_SPLIT * (U / min(U, W4_SPLIT)) : 0), U = W4_TOKENS / 4
//   dynamic shared memory = fixed + x_stages * 256 * W4_TOKENS; x_stages (groups of x held at once)
//     at least 2 unless the block has only one. x_map: BF16, dimensions (K, M), box (64, W4_TOKENS),
//     128-byte swizzle, zeros outside. Codes, scales: 16 bytes aligned, y: 4. No workspace.
#include "w4_decode_ptx.cuh"
#include "w4_decode_wgmma.cuh"
#include "w4_dequantize.cuh"

namespace w4_decode {

constexpr int kTokens = W4_TOKENS;
constexpr int kNT = kTokens / 8;
constexpr int kSplit = W4_SPLIT;
constexpr int kChunk = W4_CHUNK;
constexpr int kDepth = W4_DEPTH;
constexpr int kBuffers = W4_BUFFERS;
constexpr int kGroup = 128;
constexpr int kWarps = 4 * W4_GROUPS;           // warpgroups of 64 rows
constexpr int kCodeBytes = 1024;                // of 16 rows and one group
constexpr int kScaleBytes = 64;                 // of 16 rows and one group
constexpr int kTileBytes = kChunk * (kCodeBytes + kScaleBytes);
constexpr int kStageBytes = kWarps * kTileBytes;
constexpr int kXStageBytes = kTokens * 2 * kGroup;  // x of one group: two swizzled halves
constexpr int kUnits = 2 * kNT;                 // of a warp's result: 8 rows x 8 tokens
constexpr int kOwners = kUnits < kSplit ? kUnits : kSplit;  // blocks of the cluster that finish some
constexpr int kOwned = kUnits / kOwners;        // units that each of them finishes
constexpr int kUnitBytes = 256;                 // in FP32, one float2 a lane
constexpr int kPeerBytes = kSplit * kOwned * kUnitBytes;  // what a warp gets from its peers
constexpr int kMaxXStages = 32;
constexpr int kThreads = 32 * (kWarps + 2);

// Shared memory, from its start, which is aligned to 1024 bytes: x, the ring, the peers' sums, barriers.
constexpr int kRing = 0;
constexpr int kPeerSums = kRing + kDepth * kStageBytes;
constexpr int kBarriers = kPeerSums + (kSplit > 1 ? kWarps * kPeerBytes : 0);
constexpr int kFull = kBarriers;
constexpr int kEmpty = kFull + 8 * kDepth;
constexpr int kXFull = kEmpty + 8 * kDepth;
constexpr int kXEmpty = kXFull + 8 * kMaxXStages;
constexpr int kPeerFull = kXEmpty + 8 * kMaxXStages;
constexpr int kPeerEmpty = kPeerFull + 8 * kWarps;

struct Problem {
  const unsigned char* codes;
  const unsigned char* scales;
  const u16* bias;
  u16* y;
  int m, n, k, x_stages;
};

struct Share {
  int first, count;
};

__device__ __forceinline__ Share share_of(int total, int parts, int part) {
  const int first = static_cast<int>(static_cast<long long>(total) * part / parts);
  const int last = static_cast<int>(static_cast<long long>(total) * (part + 1) / parts);
  return {first, last - first};
}

// ---- the producers ------------------------------------------------------------------------------

// One warp; lane i copies row tile i of every stage.
__device__ __forceinline__ void produce_weights(const Problem& p, const Share& tiles,
                                                const Share& groups, u32 base, int lane) {
  int slot = 0;
  u32 parity = 1;
  for (int first = 0; first < tiles.count; first += kWarps) {
    const int rows = min(kWarps, tiles.count - first);
    const size_t tile_at = static_cast<size_t>(tiles.first + first + lane) * (p.k / kGroup) + groups.first;
    for (int done = 0; done < groups.count; done += kChunk) {
      const int count = min(kChunk, groups.count - done);
      const u32 full = base + kFull + 8 * slot;
      const u32 target = base + kRing + slot * kStageBytes + lane * kTileBytes;
      barrier_wait(base + kEmpty + 8 * slot, parity);
      if (lane == 0) barrier_expect(full, rows * count * (kCodeBytes + kScaleBytes));
      __syncwarp();
      if (lane < rows) {
        bulk_copy(target, p.codes + (tile_at + done) * kCodeBytes, count * kCodeBytes, full);
        bulk_copy(target + kChunk * kCodeBytes, p.scales + (tile_at + done) * kScaleBytes,
                  count * kScaleBytes, full);
      }
      if (++slot == kDepth) slot = 0, parity ^= 1;
    }
  }
}

// One lane. x stays where it fits; else it streams by once for every pass over the row tiles.
__device__ __forceinline__ void produce_x(const Problem& p, const TensorMap& map, const Share& tiles,
                                          const Share& groups, u32 base, u32 x_shared) {
  const bool stays = p.x_stages >= groups.count;
  const int passes = stays ? 1 : (tiles.count + kWarps - 1) / kWarps;
  int slot = 0;
  u32 parity = 1;
  wait_for_predecessors();
  for (int pass = 0; pass < passes; ++pass)
    for (int g = 0; g < groups.count; ++g) {
      if (!stays) barrier_wait(base + kXEmpty + 8 * slot, parity);
      const u32 full = base + kXFull + 8 * slot, target = x_shared + slot * kXStageBytes;
      barrier_expect(full, kXStageBytes);
      const int column = (groups.first + g) * kGroup;
      tensor_copy(target, map, column, 0, full);
      tensor_copy(target + kXStageBytes / 2, map, column + 64, 0, full);
      if (++slot == p.x_stages) slot = 0, parity ^= 1;
    }
}

// ---- the consumers ------------------------------------------------------------------------------

struct Turn {
  int slot;
  u32 parity;
  __device__ __forceinline__ void next(int count) {
    if (++slot == count) slot = 0, parity ^= 1;
  }
};

// Half a group (64 inputs): four k16 steps in flight while the caller goes on.
__device__ __forceinline__ void multiply(float (&total)[kTokens / 2], u32 (&a)[4][4], uint4 words,
                                         const w4::RowParams& params, u32 x_half) {
  const u32 word[4] = {words.x, words.y, words.z, words.w};
const u32 magic = w4::opaque_magic();
#pragma unroll
  for (int s = 0; s < 4; ++s) w4::dequantize(word[s], params, magic, a[s]);
  pin_registers(a);
  const u64 x = token_descriptor(x_half);
  wgmma_fence();
#pragma unroll
  for (int s = 0; s < 4; ++s) multiply_add(total, a[s], x + 2 * s);
  wgmma_commit();
}

// 8 rows x 8 tokens of the result, a lane holding tokens 2c and 2c + 1 of row r: transposed, so
// that it holds rows 2c and 2c + 1 of token r.
__device__ __forceinline__ void store_unit(const Problem& p, int tile, int unit, float2 value, int lane) {
  const int r = lane / 4, c = lane % 4;
  const int row = 16 * tile + 8 * (unit % 2);
  if (p.bias != nullptr && row + r < p.n) {
    const float bias = bf16_bits_to_float(p.bias[row + r]);
    value.x += bias;
    value.y += bias;
  }
  u32 bits = pack_bf16(value.x, value.y);
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %0;" : "+r"(bits));
  const int token = 8 * (unit / 2) + r;
  if (token < p.m && row + 2 * c < p.n)
    *reinterpret_cast<u32*>(p.y + static_cast<size_t>(token) * p.n + row + 2 * c) = bits;
}

// Adds up the cluster's sums of one row tile, each block finishing its own units of it.
__device__ __forceinline__ void finish_tile(const Problem& p, int tile, int pass, bool more,
                                            float (&total)[kTokens / 2], u32 rank, u32 base, int warp,
                                            int lane) {
  const auto part = [&](int unit) {
    const int i = 4 * (unit / 2) + 2 * (unit % 2);
    return float2{total[i], total[i + 1]};
  };
  if (kSplit == 1) {
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) store_unit(p, tile, unit, part(unit), lane);
    return;
  }
  const u32 sums = base + kPeerSums + warp * kPeerBytes + 8 * lane;
  const u32 full = base + kPeerFull + 8 * warp, empty = base + kPeerEmpty + 8 * warp;
  barrier_wait_cluster(empty, (pass & 1) ^ 1);
#pragma unroll
  for (int unit = 0; unit < kUnits; ++unit)
    if (unit / kOwned != static_cast<int>(rank))
      store_to_rank(sums + (rank * kOwned + unit % kOwned) * kUnitBytes, unit / kOwned, part(unit));
  __syncwarp();
  if (lane < kOwners && lane != rank) barrier_arrive_at(full, lane);
  if (rank >= kOwners) return;
  barrier_wait_cluster(full, pass & 1);
#pragma unroll
  for (int unit = 0; unit < kUnits; ++unit)
    if (unit / kOwned == static_cast<int>(rank)) {
      float2 all = {0.f, 0.f};
#pragma unroll
      for (u32 peer = 0; peer < kSplit; ++peer) {
        const float2 value = peer == rank ? part(unit)
                                          : load_shared_float2(
                                                sums + (peer * kOwned + unit % kOwned) * kUnitBytes);
        all.x += value.x;
        all.y += value.y;
      }
      store_unit(p, tile, unit, all, lane);
    }
  __syncwarp();
  if (more && lane < kSplit && lane != rank) barrier_arrive_at(empty, lane);
}

__device__ __forceinline__ void consume(const Problem& p, const Share& tiles, const Share& groups,
                                        u32 rank, u32 base, u32 x_shared, int warp, int lane) {
  Turn weights{0, 0}, x{0, 0};
  const bool stays = p.x_stages >= groups.count;
  for (int first = 0; first < tiles.count; first += kWarps) {
    const bool busy = first + warp / 4 * 4 < tiles.count;  // of the whole warpgroup
    float total[kTokens / 2] = {};
    u32 a[kBuffers][4][4];
    int unread = -1;  // slot of x that the multiplications in flight still read
    for (int done = 0; done < groups.count; done += kChunk) {
      barrier_wait(base + kFull + 8 * weights.slot, weights.parity);
      const u32 tile = base + kRing + weights.slot * kStageBytes + warp * kTileBytes;
      const int count = min(kChunk, groups.count - done);
#pragma unroll 1
      for (int g = 0; g < count; ++g) {
        const uint4 low = load_shared_16(tile + g * kCodeBytes + 16 * lane);
        const uint4 high = load_shared_16(tile + g * kCodeBytes + 512 + 16 * lane);
        const w4::RowParams params = w4::unpack_row_params(
            load_shared_8(tile + kChunk * kCodeBytes + g * kScaleBytes + 8 * (lane / 4)));
        barrier_wait(base + kXFull + 8 * x.slot, x.parity);
        const u32 x_group = x_shared + x.slot * kXStageBytes;
        if (busy) {
          wgmma_wait<kBuffers - 1>();
          multiply(total, a[0], low, params, x_group);
          wgmma_wait<kBuffers - 1>();
          multiply(total, a[kBuffers - 1], high, params, x_group + kXStageBytes / 2);
        }
        if (!stays) {
          if (unread >= 0 && lane == 0) barrier_arrive(base + kXEmpty + 8 * unread);
          unread = x.slot;
        }
        if (stays) {
          if (++x.slot == groups.count) x.slot = 0;
        } else {
          x.next(p.x_stages);
        }
      }
      __syncwarp();
      if (lane == 0) barrier_arrive(base + kEmpty + 8 * weights.slot);
      weights.next(kDepth);
    }
    wgmma_wait<0>();
    if (unread >= 0 && lane == 0) barrier_arrive(base + kXEmpty + 8 * unread);
    __syncwarp();
    if (first + warp < tiles.count)
      finish_tile(p, tiles.first + first + warp, first / kWarps,
                  first + kWarps + warp < tiles.count, total, rank, base, warp, lane);
  }
}

extern __shared__ __align__(1024) unsigned char shared_memory[];

}  // namespace w4_decode

extern "C" __global__ void __launch_bounds__(w4_decode::kThreads, W4_BLOCKS)
    w4_decode_wide_kernel(const __grid_constant__ w4_decode::TensorMap x_map, const unsigned char* codes,
                          const unsigned char* scales, const unsigned short* bias, unsigned short* y,
                          int m, int n, int k, int x_stages) {
  using namespace w4_decode;
  launch_dependents();
  const Problem p{codes, scales, bias, y, m, n, k, x_stages};
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const u32 rank = kSplit > 1 ? cluster_rank() : 0;
  const u32 x_shared = shared_address(shared_memory);
  const u32 base = x_shared + x_stages * kXStageBytes;
  const Share tiles = share_of((n + 15) / 16, gridDim.x / kSplit, blockIdx.x / kSplit);
  const Share groups = share_of(k / kGroup, kSplit, rank);

  if (threadIdx.x == 0) {
    for (int i = 0; i < kDepth; ++i) {
      barrier_init(base + kFull + 8 * i, 1);
      barrier_init(base + kEmpty + 8 * i, kWarps);
    }
    for (int i = 0; i < kMaxXStages; ++i) {
      barrier_init(base + kXFull + 8 * i, 1);
      barrier_init(base + kXEmpty + 8 * i, kWarps);
    }
    for (int i = 0; i < kWarps; ++i) {
      barrier_init(base + kPeerFull + 8 * i, kSplit > 1 ? kSplit - 1 : 1);
      barrier_init(base + kPeerEmpty + 8 * i,
                   kSplit > 1 ? kOwners - (rank < static_cast<u32>(kOwners)) : 1);
    }
    barrier_init_fence();
  }
  __syncthreads();
  if (kSplit > 1) cluster_arrive();
  if (warp == kWarps) {
    produce_weights(p, tiles, groups, base, lane);
  } else if (warp == kWarps + 1) {
    if (lane == 0) produce_x(p, x_map, tiles, groups, base, x_shared);
    __syncwarp();
  }
  if (kSplit > 1) cluster_wait();
  if (warp < kWarps) consume(p, tiles, groups, rank, base, x_shared, warp, lane);
  if (kSplit > 1) {
    __syncwarp();
    cluster_arrive();
    cluster_wait();
  }
}
