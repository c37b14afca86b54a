// y = x · Wᵀ (+ bias) for few rows of x (decode): x [M, K] BF16, W [N, K] in w4 tiles, y [M, N] BF16.
// sm_90 and up.
//
// Macros choose the instance:
//   W4_NT      n8 tiles of tokens, M <= 8 * W4_NT
//   W4_WARPS   consumer warps of a block
//   W4_SHARE   blocks of a cluster, which fetch x once for all of them (1: no cluster)
//   W4_CHUNK   groups of 128 inputs that a warp takes of one stage
//   W4_DEPTH   stages of the ring
//   W4_EXACT   1: subtract the zero points from the codes, 0: from the sums
#include "w4_decode_ptx.cuh"

#ifndef W4_XLOAD
#define W4_XLOAD 0
#endif
#ifndef W4_EXACT
#define W4_EXACT 0
#endif

namespace w4_decode {

constexpr int kNT = W4_NT;
constexpr int kWarps = W4_WARPS;
constexpr int kShare = W4_SHARE;
constexpr int kChunk = W4_CHUNK;
constexpr int kDepth = W4_DEPTH;
constexpr bool kExact = W4_EXACT;
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

// Shared memory, from its start.
constexpr int kFull = 0;                             // kDepth barriers: a stage has arrived
constexpr int kEmpty = kFull + 8 * kDepth;           // kDepth: a stage has been read
constexpr int kXFull = kEmpty + 8 * kDepth;          // x has arrived
constexpr int kSumFull = kXFull + 8;                 // 2: the warps' partial sums are written
constexpr int kSumEmpty = kSumFull + 16;             // 2: ... and read
constexpr int kBarriers = kSumEmpty + 16;
constexpr int kPartials = (kBarriers + 127) / 128 * 128;
constexpr int kRing = kPartials + 2 * kWarps * kPartialFloats * 4;
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

// Every block of the cluster fetches its share of every row, for all of them.
__device__ __forceinline__ void fetch_x(const Problem& p, u32 base, u32 x_shared, int pitch) {
  barrier_expect(base + kXFull, p.m * 2 * p.k);
  const Share part = share_of(p.k / kGroup, kShare, kShare > 1 ? cluster_rank() : 0);
  const int bytes = part.count * 2 * kGroup;
  if (bytes == 0) return;
  for (int row = 0; row < p.m; ++row) {
    const u32 target = x_shared + row * pitch + part.first * 2 * kGroup;
    const u16* source = p.x + static_cast<size_t>(row) * p.k + part.first * kGroup;
    if (kShare > 1)
      bulk_copy_to_all(target, source, bytes, base + kXFull, (1 << kShare) - 1);
    else
      bulk_copy(target, source, bytes, base + kXFull);
  }
}

__device__ __forceinline__ void produce(const Problem& p, const Share& tiles, const Share& groups,
                                        int ahead, u32 base, u32 x_shared, int pitch, int lane) {
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
  if (lane == 0)
    for (int i = 0; i < kDepth && !next.done(); ++i) fetch();
  __syncwarp();
  if (kShare > 1) cluster_wait();
  if (lane != 0) return;
  Position later = next;
  for (int i = 0; i < ahead && !later.done(); ++i) {
    const size_t at = later.at(p.k);
    bulk_prefetch_l2(p.codes + at * kCodeBytes, later.count() * kCodeBytes);
    bulk_prefetch_l2(p.scales + at * kScaleBytes, later.count() * kScaleBytes);
    later.group += kStageGroups;
    if (later.group >= groups.count) later.group = 0, ++later.tile;
  }
#if !W4_XLOAD
  wait_for_predecessors();
  fetch_x(p, base, x_shared, pitch);
#endif
  u32 parity = 0;
  while (!next.done()) {
    barrier_wait(base + kEmpty + 8 * slot, parity);
    const int before = slot;
    fetch();
    if (slot < before || kDepth == 1) parity ^= 1;
  }
}

// ---- the consumers ------------------------------------------------------------------------------

__device__ __forceinline__ void load_x(const Problem& p, u32 x_shared, int pitch, int thread) {
  wait_for_predecessors();
  const int pieces = p.k / 8, all = p.m * pieces;
  constexpr int kBatch = 4;
  for (int first = thread; first < all; first += kBatch * kConsumers) {
    uint4 piece[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i)
      if (first + i * kConsumers < all)
        piece[i] = load_global_16(p.x + static_cast<size_t>(first + i * kConsumers) * 8);
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int at = first + i * kConsumers;
      if (at < all) store_shared_16(x_shared + (at / pieces) * pitch + (at % pieces) * 16, piece[i]);
    }
  }
}

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

// One group of one tile. With W4_EXACT the codes become q - z first, exactly; else the accumulator
// takes the raw values 128 + q, and total += s * (raw - (128 + z) * sum of x).
__device__ __forceinline__ void add_group(float (&total)[kNT][4], u32 codes, u32 scales,
                                          const u32 (&x_rows)[kNT], u32 x_offset, u32 sums) {
  const uint2 params = load_shared_8(scales);
  const u32 minus[2] = {minus_offset_pair(params.x), minus_offset_pair(params.y)};
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
        for (int i = 0; i < 4; ++i) {
          a[i] = raw_pair(word[2 * pair + s] >> (4 * i));
          if (kExact) a[i] = add_pair(a[i], minus[i % 2]);
        }
#pragma unroll
        for (int t = 0; t < kNT; ++t) mma(raw[t][s], a, b[t][2 * s], b[t][2 * s + 1]);
      }
    }
  }
  const float scale[2] = {half_bits_to_float(params.x), half_bits_to_float(params.y)};
  const float offset[2] = {__uint_as_float(params.x & 0xffff0000u),
                           __uint_as_float(params.y & 0xffff0000u)};
#pragma unroll
  for (int t = 0; t < kNT; ++t) {
    float sum[2] = {0.f, 0.f};
    if (!kExact) {
      const uint2 bits = load_shared_8(sums + 32 * t);
      sum[0] = __uint_as_float(bits.x), sum[1] = __uint_as_float(bits.y);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float value = raw[t][0][i] + raw[t][1][i];
      if (!kExact) value -= offset[i / 2] * sum[i % 2];
      total[t][i] += scale[i / 2] * value;
    }
  }
}

__device__ __forceinline__ void consume(const Problem& p, const Share& tiles, const Share& groups,
                                        u32 base, u32 x_shared, int pitch, int warp, int lane) {
  u32 x_rows[kNT];
#pragma unroll
  for (int t = 0; t < kNT; ++t)
    x_rows[t] = x_shared + min(8 * t + lane % 8, p.m - 1) * pitch + 16 * (lane / 8);
#if W4_XLOAD
  load_x(p, x_shared, pitch, 32 * warp + lane);
  named_barrier(1, kConsumers);
#else
  barrier_wait(base + kXFull, 0);
#endif
  if (!kExact) {
    for (int g = warp; g < groups.count; g += kWarps)
      sum_group(x_rows, base + kGroupSums, g, lane);
    named_barrier(1, kConsumers);
  }

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

__device__ __forceinline__ void reduce(const Problem& p, const Share& tiles, u32 base, int lane) {
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
  const u32 base = shared_address(shared_memory);
  const Share tiles = share_of((n + 15) / 16, gridDim.x, blockIdx.x);
  const Share groups{0, k / kGroup};
  const int pitch = 2 * k + 16;
  const u32 x_shared = base + kGroupSums + (kExact ? 0 : groups.count * kTokens * 4);

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
  if (kShare > 1) cluster_arrive();

  if (warp < kWarps) {
    if (kShare > 1) cluster_wait();
    consume(p, tiles, groups, base, x_shared, pitch, warp, lane);
  } else if (warp == kWarps) {
    produce(p, tiles, groups, ahead, base, x_shared, pitch, lane);
  } else {
    if (kShare > 1) cluster_wait();
    reduce(p, tiles, base, lane);
  }
}
