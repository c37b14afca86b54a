// y = x · Wᵀ (+ bias) for few rows of x (decode): x [M, K] BF16, W [N, K] in w4 tiles, y [M, N] BF16.
// sm_90 and up.
//
// Macros choose the instance:
//   W4_NT      n8 tiles of tokens, M <= 8 * W4_NT
//   W4_WARPS   consumer warps of a block
//   W4_SPLIT   blocks of a cluster; each owns a share of K (1: no cluster)
//   W4_CHUNK   groups of 128 inputs that a warp takes of one stage
//   W4_DEPTH   stages of the ring
#include "w4_decode_ptx.cuh"

namespace w4_decode {

constexpr int kNT = W4_NT;
constexpr int kWarps = W4_WARPS;
constexpr int kSplit = W4_SPLIT;
constexpr int kChunk = W4_CHUNK;
constexpr int kDepth = W4_DEPTH;
constexpr int kTokens = 8 * kNT;
constexpr int kGroup = 128;
constexpr int kCodeBytes = 1024;  // of 16 rows and one group
constexpr int kScaleBytes = 64;   // of 16 rows and one group
constexpr int kStageGroups = kWarps * kChunk;
constexpr int kStageBytes = kStageGroups * (kCodeBytes + kScaleBytes);
constexpr int kPartialPitch = 20;  // floats a token; 16 rows, padded against bank conflicts
constexpr int kPartialFloats = kTokens * kPartialPitch;
constexpr int kPairs = kTokens * 8;  // pairs of neighbouring rows in one tile's output
constexpr int kLanePairs = kPairs / 32;
constexpr int kConsumers = 32 * kWarps;
constexpr int kThreads = kConsumers + 64;

// Shared memory, from its start; the same in every block of a cluster.
constexpr int kFull = 0;                             // kDepth barriers: a stage has arrived
constexpr int kEmpty = kFull + 8 * kDepth;           // kDepth: a stage has been read
constexpr int kXFull = kEmpty + 8 * kDepth;          // x has arrived
constexpr int kSumFull = kXFull + 8;                 // 2: the warps' partial sums are written
constexpr int kSumEmpty = kSumFull + 16;             // 2: ... and read
constexpr int kPeerFull = kSumEmpty + 16;            // 2: the peers' sums of a tile that I own
constexpr int kPeerEmpty = kPeerFull + 16;           // 2 for each owner: my slot there is free
constexpr int kBarriers = kPeerEmpty + 16 * kSplit;
constexpr int kPartials = (kBarriers + 127) / 128 * 128;
constexpr int kPeerSums = kPartials + 2 * kWarps * kPartialFloats * 4;
constexpr int kRing = kPeerSums + (kSplit > 1 ? 2 * kSplit * kPairs * 8 : 0);
constexpr int kGroupSums = kRing + kDepth * kStageBytes;

struct Problem {
  const unsigned char* codes;
  const unsigned char* scales;
  const u16* x;
  const u16* bias;
  u16* y;
  int m, n, k;
};

struct Share {
  int first, count;
};

__device__ __forceinline__ Share share_of(int total, int parts, int part) {
  const int first = static_cast<int>(static_cast<long long>(total) * part / parts);
  const int last = static_cast<int>(static_cast<long long>(total) * (part + 1) / parts);
  return {first, last - first};
}

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

__device__ __forceinline__ void produce(const Problem& p, const Share& tiles, const Share& groups,
                                        int ahead, u32 base, u32 x_shared, int pitch) {
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
  for (int i = 0; i < kDepth && !next.done(); ++i) fetch();
  Position later = next;
  for (int i = 0; i < ahead && !later.done(); ++i) {
    const size_t at = later.at(p.k);
    bulk_prefetch_l2(p.codes + at * kCodeBytes, later.count() * kCodeBytes);
    bulk_prefetch_l2(p.scales + at * kScaleBytes, later.count() * kScaleBytes);
    later.group += kStageGroups;
    if (later.group >= groups.count) later.group = 0, ++later.tile;
  }
  wait_for_predecessors();
  const int row_bytes = groups.count * 2 * kGroup;
  barrier_expect(base + kXFull, p.m * row_bytes);
  for (int row = 0; row < p.m; ++row)
    bulk_copy(x_shared + row * pitch, p.x + static_cast<size_t>(row) * p.k + groups.first * kGroup,
              row_bytes, base + kXFull);
  u32 parity = 0;
  while (!next.done()) {
    barrier_wait(base + kEmpty + 8 * slot, parity);
    const int before = slot;
    fetch();
    if (slot < before || kDepth == 1) parity ^= 1;
  }
}

// ---- the consumers ------------------------------------------------------------------------------

// Sums of x over each group by the tensor cores: a row of ones times x. Lane (r, c) gets the sums
// of tokens 2c and 2c + 1; the lanes of row 0 store them.
__device__ __forceinline__ void sum_group(const u32 (&x_rows)[kNT], u32 sums, int group, int lane) {
  const u32 ones[4] = {0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u};
#pragma unroll
  for (int t = 0; t < kNT; ++t) {
    float part[2][4] = {};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      u32 b[4];
      load_matrices(b, x_rows[t] + group * (2 * kGroup) + 64 * i);
      mma(part[0], ones, b[0], b[1]);
      mma(part[1], ones, b[2], b[3]);
    }
    if (lane < 4)
      store_shared_8(sums + 4 * (group * kTokens + 8 * t + 2 * lane), part[0][0] + part[1][0],
                     part[0][1] + part[1][1]);
  }
}

// One group of one tile: the accumulator of the raw values 128 + q, then
// total += s * (raw - (128 + z) * sum of x).
__device__ __forceinline__ void add_group(float (&total)[kNT][4], u32 codes, u32 scales,
                                          const u32 (&x_rows)[kNT], u32 x_offset, u32 sums) {
  float raw[kNT][2][4] = {};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint4 words = load_shared_16(codes + 512 * half);
    const u32 word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      u32 b[kNT][4];
#pragma unroll
      for (int t = 0; t < kNT; ++t)
        load_matrices(b[t], x_rows[t] + x_offset + 128 * half + 64 * pair);
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        u32 a[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) a[i] = raw_pair(word[2 * pair + s] >> (4 * i));
#pragma unroll
        for (int t = 0; t < kNT; ++t) mma(raw[t][s], a, b[t][2 * s], b[t][2 * s + 1]);
      }
    }
  }
  const uint2 params = load_shared_8(scales);
  const float scale[2] = {half_bits_to_float(params.x), half_bits_to_float(params.y)};
  const float offset[2] = {__uint_as_float(params.x & 0xffff0000u),
                           __uint_as_float(params.y & 0xffff0000u)};
#pragma unroll
  for (int t = 0; t < kNT; ++t) {
    const uint2 bits = load_shared_8(sums + 32 * t);
    const float sum[2] = {__uint_as_float(bits.x), __uint_as_float(bits.y)};
#pragma unroll
    for (int i = 0; i < 4; ++i)
      total[t][i] += scale[i / 2] * ((raw[t][0][i] + raw[t][1][i]) - offset[i / 2] * sum[i % 2]);
  }
}

__device__ __forceinline__ void consume(const Problem& p, const Share& tiles, const Share& groups,
                                        u32 base, u32 x_shared, int pitch, int warp, int lane) {
  u32 x_rows[kNT];
#pragma unroll
  for (int t = 0; t < kNT; ++t)
    x_rows[t] = x_shared + min(8 * t + lane % 8, p.m - 1) * pitch + 16 * (lane / 8);
  barrier_wait(base + kXFull, 0);
  for (int g = warp; g < groups.count; g += kWarps)
    sum_group(x_rows, base + kGroupSums, g, lane);
  named_barrier(1, kConsumers);

  const u32 codes = base + kRing + warp * kChunk * kCodeBytes + 16 * lane;
  const u32 scales =
      base + kRing + kStageGroups * kCodeBytes + warp * kChunk * kScaleBytes + 8 * (lane / 4);
  const u32 sums = base + kGroupSums + 8 * (lane % 4);
  int slot = 0;
  u32 parity = 0;
  for (int index = 0; index < tiles.count; ++index) {
    float total[kNT][4] = {};
    for (int done = 0; done < groups.count; done += kStageGroups) {
      barrier_wait(base + kFull + 8 * slot, parity);
      const int first = done + warp * kChunk;
      const auto add = [&](int i) {
        add_group(total, codes + slot * kStageBytes + i * kCodeBytes,
                  scales + slot * kStageBytes + i * kScaleBytes, x_rows,
                  (first + i) * 2 * kGroup, sums + (first + i) * (4 * kTokens));
      };
      if (first + kChunk <= groups.count) {
#pragma unroll
        for (int i = 0; i < kChunk; ++i) add(i);
      } else {
#pragma unroll 1
        for (int i = 0; first + i < groups.count; ++i) add(i);
      }
      __syncwarp();
      if (lane == 0) barrier_arrive(base + kEmpty + 8 * slot);
      if (++slot == kDepth) slot = 0, parity ^= 1;
    }
    const int buffer = index & 1, r = lane / 4, c = lane % 4;
    barrier_wait(base + kSumEmpty + 8 * buffer, ((index >> 1) & 1) ^ 1);
    const u32 mine = base + kPartials + 4 * ((buffer * kWarps + warp) * kPartialFloats);
#pragma unroll
    for (int t = 0; t < kNT; ++t)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        store_shared_4(mine + 4 * ((8 * t + 2 * c + i % 2) * kPartialPitch + r + 8 * (i / 2)),
                       total[t][i]);
    __syncwarp();
    if (lane == 0) barrier_arrive(base + kSumFull + 8 * buffer);
  }
}

// ---- the reducer: one warp ----------------------------------------------------------------------

__device__ __forceinline__ void store_pair(const Problem& p, int tile, int pair, float2 value) {
  const int token = pair / 8, row = 16 * tile + 2 * (pair % 8);
  if (token >= p.m || row >= p.n) return;
  if (p.bias != nullptr) {
    value.x += bf16_bits_to_float(p.bias[row]);
    value.y += bf16_bits_to_float(p.bias[row + 1]);
  }
  *reinterpret_cast<u32*>(p.y + static_cast<size_t>(token) * p.n + row) = pack_bf16(value.x, value.y);
}

// Sends this block's sums of a tile to the block that owns it, or adds the peers' sums to its own.
__device__ __forceinline__ void exchange(float2 (&sum)[kLanePairs], int index, u32 rank, u32 base,
                                         int lane, bool& mine) {
  const u32 owner = index % kSplit;
  const int turn = index / kSplit, slot = turn & 1;
  const u32 sums = base + kPeerSums + 8 * (slot * kSplit * kPairs + lane);
  mine = owner == rank;
  if (!mine) {
    barrier_wait_cluster(base + kPeerEmpty + 16 * owner + 8 * slot, ((turn >> 1) & 1) ^ 1);
#pragma unroll
    for (int j = 0; j < kLanePairs; ++j)
      store_to_rank(sums + 8 * (rank * kPairs + 32 * j), owner, sum[j]);
    __syncwarp();
    if (lane == 0) barrier_arrive_at(base + kPeerFull + 8 * slot, owner);
    return;
  }
  barrier_wait_cluster(base + kPeerFull + 8 * slot, (turn >> 1) & 1);
#pragma unroll
  for (int j = 0; j < kLanePairs; ++j) {
    float2 all = {0.f, 0.f};
#pragma unroll
    for (u32 peer = 0; peer < kSplit; ++peer) {
      const float2 part =
          peer == rank ? sum[j] : load_shared_float2(sums + 8 * (peer * kPairs + 32 * j));
      all.x += part.x;
      all.y += part.y;
    }
    sum[j] = all;
  }
  __syncwarp();
  if (lane < kSplit && lane != rank) barrier_arrive_at(base + kPeerEmpty + 16 * rank + 8 * slot, lane);
}

__device__ __forceinline__ void reduce(const Problem& p, const Share& tiles, u32 rank, u32 base,
                                       int lane) {
  for (int index = 0; index < tiles.count; ++index) {
    const int buffer = index & 1;
    barrier_wait(base + kSumFull + 8 * buffer, (index >> 1) & 1);
    float2 sum[kLanePairs];
#pragma unroll
    for (int j = 0; j < kLanePairs; ++j) {
      const int pair = 32 * j + lane;
      const u32 at = base + kPartials +
                     4 * (buffer * kWarps * kPartialFloats + (pair / 8) * kPartialPitch + 2 * (pair % 8));
      float2 all = {0.f, 0.f};
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        const float2 part = load_shared_float2(at + 4 * w * kPartialFloats);
        all.x += part.x;
        all.y += part.y;
      }
      sum[j] = all;
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(base + kSumEmpty + 8 * buffer);
    bool mine = true;
    if (kSplit > 1) exchange(sum, index, rank, base, lane, mine);
    if (mine)
#pragma unroll
      for (int j = 0; j < kLanePairs; ++j) store_pair(p, tiles.first + index, 32 * j + lane, sum[j]);
  }
}

extern __shared__ __align__(128) unsigned char shared_memory[];

}  // namespace w4_decode

extern "C" __global__ void __launch_bounds__(w4_decode::kThreads, W4_BLOCKS)
    w4_decode_kernel(const unsigned char* codes, const unsigned char* scales, const unsigned short* x,
                     const unsigned short* bias, unsigned short* y, int m, int n, int k, int ahead) {
  using namespace w4_decode;
  launch_dependents();
  const Problem p{codes, scales, x, bias, y, m, n, k};
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const u32 rank = kSplit > 1 ? cluster_rank() : 0;
  const u32 base = shared_address(shared_memory);
  const Share tiles = share_of((n + 15) / 16, gridDim.x / kSplit, blockIdx.x / kSplit);
  const Share groups = share_of(k / kGroup, kSplit, rank);
  const int most_groups = (k / kGroup + kSplit - 1) / kSplit;
  const int pitch = most_groups * 2 * kGroup + 16;
  const u32 x_shared = base + kGroupSums + most_groups * kTokens * 4;

  if (threadIdx.x == 0) {
    for (int i = 0; i < kDepth; ++i) {
      barrier_init(base + kFull + 8 * i, 1);
      barrier_init(base + kEmpty + 8 * i, kWarps);
    }
    barrier_init(base + kXFull, 1);
    for (int i = 0; i < 2; ++i) {
      barrier_init(base + kSumFull + 8 * i, kWarps);
      barrier_init(base + kSumEmpty + 8 * i, 1);
      barrier_init(base + kPeerFull + 8 * i, kSplit - 1 + (kSplit == 1));
      for (int owner = 0; owner < kSplit; ++owner)
        barrier_init(base + kPeerEmpty + 16 * owner + 8 * i, 1);
    }
    barrier_init_fence();
  }
  __syncthreads();
  if (kSplit > 1) cluster_arrive();

  if (warp < kWarps) {
    if (groups.count > 0) consume(p, tiles, groups, base, x_shared, pitch, warp, lane);
  } else if (warp == kWarps) {
    if (lane == 0 && groups.count > 0) produce(p, tiles, groups, ahead, base, x_shared, pitch);
    __syncwarp();
  }
  if (kSplit > 1) cluster_wait();
  if (warp == kWarps + 1) reduce(p, tiles, rank, base, lane);
  if (kSplit > 1) {
    __syncwarp();
    cluster_arrive();
    cluster_wait();
  }
}
