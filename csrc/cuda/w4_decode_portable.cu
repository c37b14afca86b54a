// y = x · Wᵀ (+ bias) for few rows of x (decode): x [M, K] BF16, W [N, K] in w4 tiles, y [M, N] BF16.
//
// Macros choose the instance:
//   W4_NT      n8 tiles of tokens, M <= 8 * W4_NT
//   W4_WARPS   warps of a block; each owns a share of the block's K
//   W4_SPLIT   blocks of a cluster; each owns a share of K (1: no cluster)
//   W4_CHUNK   groups of 128 inputs in one stage of a warp's ring
//   W4_DEPTH   stages of a warp's ring
//
// Launch: grid (Q * W4_SPLIT), block (32 * W4_WARPS), cluster (W4_SPLIT) when > 1, programmatic
// stream serialisation allowed. Q, the number of row partitions, is free (tiles of 16 rows are
// dealt out evenly); Q * W4_SPLIT <= resident blocks is best.
// Dynamic shared memory: see w4_decode::shared_bytes(); G = groups of a warp =
// ceil(ceil(K / 128 / W4_SPLIT) / W4_WARPS):
//   W4_WARPS * (W4_DEPTH * W4_CHUNK * 1088 + M * (256 * G + 16) + 32 * W4_NT * G)
//   + 2 * W4_WARPS * 640 * W4_NT + 2 * W4_SPLIT * 512 * W4_NT (when > 1) + 128 * W4_WARPS
// Alignment: x, codes, scales 16 bytes; y 4 bytes.
#include "w4_decode_ptx.cuh"

namespace w4_decode {

constexpr int kNT = W4_NT;
constexpr int kWarps = W4_WARPS;
constexpr int kSplit = W4_SPLIT;
constexpr int kChunk = W4_CHUNK;
constexpr int kDepth = W4_DEPTH;
constexpr int kTokens = 8 * kNT;
constexpr int kGroup = 128;
constexpr int kCodeBytes = 1024;   // of 16 rows and one group
constexpr int kScaleBytes = 64;    // of 16 rows and one group
constexpr int kStageBytes = kChunk * (kCodeBytes + kScaleBytes);
constexpr int kPartialPitch = 20;  // floats a token; 16 rows, padded against bank conflicts
constexpr int kPartialFloats = kTokens * kPartialPitch;
constexpr int kPairs = kTokens * 8;  // pairs of neighbouring rows in one tile's output
constexpr int kThreads = 32 * kWarps;

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

// A warp's walk through its groups of every tile, in stages of at most kChunk groups.
struct Walk {
  const Problem& p;
  Share tiles, groups;
  int chunks;  // stages a tile
  u32 ring, barriers;

  __device__ __forceinline__ int stages() const { return tiles.count * chunks; }

  template <class Copy>
  __device__ __forceinline__ void locate(int stage, Copy copy) const {
    const int tile = tiles.first + stage / chunks;
    const int skipped = (stage % chunks) * kChunk;
    const int count = min(kChunk, groups.count - skipped);
    const size_t at = static_cast<size_t>(tile) * (p.k / kGroup) + groups.first + skipped;
    copy(p.codes + at * kCodeBytes, p.scales + at * kScaleBytes, count);
  }

  __device__ __forceinline__ void fetch(int stage, int slot, int lane) const {
    locate(stage, [&](const unsigned char* codes, const unsigned char* scales, int count) {
      const u32 target = ring + slot * kStageBytes;
#if W4_DECODE_BULK
      if (lane == 0) {
        const u32 full = barriers + 8 * slot;
        barrier_expect(full, count * (kCodeBytes + kScaleBytes));
        bulk_copy(target, codes, count * kCodeBytes, full);
        bulk_copy(target + kChunk * kCodeBytes, scales, count * kScaleBytes, full);
      }
#else
      for (int i = lane; i < count * (kCodeBytes / 16); i += 32)
        async_copy_16(target + 16 * i, codes + 16 * i);
      if (lane < count * (kScaleBytes / 16))
        async_copy_16(target + kChunk * kCodeBytes + 16 * lane, scales + 16 * lane);
#endif
    });
  }

  __device__ __forceinline__ void prefetch(int stage) const {
#if W4_DECODE_BULK
    locate(stage, [&](const unsigned char* codes, const unsigned char* scales, int count) {
      bulk_prefetch_l2(codes, count * kCodeBytes);
      bulk_prefetch_l2(scales, count * kScaleBytes);
    });
#endif
  }
};

// Sums of x over each group by the tensor cores: a row of ones times x. Lane (r, c) keeps the sums
// of tokens 2c and 2c + 1; the lanes of row 0 store them.
__device__ __forceinline__ void sum_groups(const u32 (&x_rows)[kNT], u32 sums, int groups, int lane) {
  const u32 ones[4] = {0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u};
#pragma unroll 2
  for (int g = 0; g < groups; ++g) {
#pragma unroll
    for (int t = 0; t < kNT; ++t) {
      float even[4] = {}, odd[4] = {};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        u32 b[4];
        load_matrices(b, x_rows[t] + g * (2 * kGroup) + 64 * i);
        mma(even, ones, b[0], b[1]);
        mma(odd, ones, b[2], b[3]);
      }
      if (lane < 4)
        asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(
                         sums + 4 * (g * kTokens + 8 * t + 2 * lane)),
                     "f"(even[0] + odd[0]), "f"(even[1] + odd[1])
                     : "memory");
    }
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

struct Shared {
  u32 ring, x, sums, partials, cluster_sums, barriers;
};

__device__ __forceinline__ void store_pair(const Problem& p, int tile, int pair, float2 value) {
  const int token = pair / 8, row = 16 * tile + 2 * (pair % 8);
  if (token >= p.m || row >= p.n) return;
  if (p.bias != nullptr) {
    value.x += bf16_bits_to_float(p.bias[row]);
    value.y += bf16_bits_to_float(p.bias[row + 1]);
  }
  *reinterpret_cast<u32*>(p.y + static_cast<size_t>(token) * p.n + row) = pack_bf16(value.x, value.y);
}

extern __shared__ __align__(128) unsigned char shared_memory[];

__device__ __forceinline__ float2 sum_pair(const float* values, int count, int stride) {
  float2 sum = {0.f, 0.f};
#pragma unroll
  for (int i = 0; i < count; ++i) {
    const float2 v = *reinterpret_cast<const float2*>(values + i * stride);
    sum.x += v.x;
    sum.y += v.y;
  }
  return sum;
}

// Adds up the warps' partial sums of a tile; with a cluster, hands the sum to the tile's owner.
struct Reduction {
  const Problem& p;
  Share tiles;
  float* partials;      // [2][kWarps][kPartialFloats]
  float* cluster_sums;  // [2][kSplit][2 * kPairs]
  int warp, lane, thread;
  u32 rank;

  __device__ __forceinline__ void write_owned(int batch) const {
    const int index = batch * kSplit + static_cast<int>(rank);
    if (index >= tiles.count) return;
    for (int pair = thread; pair < kPairs; pair += kThreads)
      store_pair(p, tiles.first + index, pair,
                 sum_pair(cluster_sums + (batch & 1) * kSplit * 2 * kPairs + 2 * pair, kSplit,
                          2 * kPairs));
  }

  __device__ __forceinline__ void add_tile(int index, const float (&total)[kNT][4]) const {
    float* mine = partials + ((index & 1) * kWarps + warp) * kPartialFloats;
    const int r = lane / 4, c = lane % 4;
#pragma unroll
    for (int t = 0; t < kNT; ++t)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        mine[(8 * t + 2 * c + i % 2) * kPartialPitch + r + 8 * (i / 2)] = total[t][i];
    __syncthreads();
    const int batch = index / kSplit, owner = index % kSplit;
    if (kSplit > 1 && owner == 0) {
      cluster_wait();
      if (batch > 0) write_owned(batch - 1);
    }
    const float* all = partials + (index & 1) * kWarps * kPartialFloats;
    for (int pair = thread; pair < kPairs; pair += kThreads) {
      const float2 sum =
          sum_pair(all + (pair / 8) * kPartialPitch + 2 * (pair % 8), kWarps, kPartialFloats);
      if (kSplit == 1)
        store_pair(p, tiles.first + index, pair, sum);
      else
        store_to_rank(shared_address(cluster_sums +
                                     ((batch & 1) * kSplit + rank) * 2 * kPairs + 2 * pair),
                      owner, sum);
    }
    if (kSplit > 1 && (owner == kSplit - 1 || index == tiles.count - 1)) cluster_arrive();
  }

  __device__ __forceinline__ void finish() const {
    if (kSplit == 1) return;
    cluster_wait();
    if (tiles.count > 0) write_owned((tiles.count - 1) / kSplit);
  }
};

}  // namespace w4_decode

extern "C" __global__ void __launch_bounds__(32 * W4_WARPS, 512 / (32 * W4_WARPS))
    w4_decode_kernel(const unsigned char* codes, const unsigned char* scales, const unsigned short* x,
                     const unsigned short* bias, unsigned short* y, int m, int n, int k, int ahead) {
  using namespace w4_decode;
  launch_dependents();
  const Problem p{codes, scales, x, bias, y, m, n, k};
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const u32 rank = kSplit > 1 ? cluster_rank() : 0;
  const int partitions = gridDim.x / kSplit;
  const Share tiles = share_of((n + 15) / 16, partitions, blockIdx.x / kSplit);
  const Share block_groups = share_of(k / kGroup, kSplit, rank);
  Share groups = share_of(block_groups.count, kWarps, warp);
  groups.first += block_groups.first;
  const int most_groups = ((k / kGroup + kSplit - 1) / kSplit + kWarps - 1) / kWarps;

  // Shared memory, the same in every block of a cluster.
  const u32 base = shared_address(shared_memory);
  const int pitch = most_groups * 2 * kGroup + 16;
  constexpr u32 kBarrierBytes = 128;
  constexpr u32 kReduceBytes =
      4 * (2 * kWarps * kPartialFloats + (kSplit > 1 ? 2 * kSplit * 2 * kPairs : 0));
  const u32 barriers = base + warp * kBarrierBytes;
  const u32 ring = base + kWarps * kBarrierBytes + kReduceBytes + warp * (kDepth * kStageBytes);
  const u32 rest = base + kWarps * (kBarrierBytes + kDepth * kStageBytes) + kReduceBytes;
  const u32 sums = rest + warp * (most_groups * kTokens * 4);
  const u32 x_shared = rest + kWarps * (most_groups * kTokens * 4) + warp * (m * pitch);
  float* partials = reinterpret_cast<float*>(shared_memory + kWarps * kBarrierBytes);
  float* cluster_sums = partials + 2 * kWarps * kPartialFloats;

  if (kSplit > 1) cluster_arrive();
  const u32 x_full = barriers + 8 * kDepth;
#if W4_DECODE_BULK
  if (lane == 0) {
    for (int i = 0; i <= kDepth; ++i) barrier_init(barriers + 8 * i, 1);
    barrier_init_fence();
  }
  __syncwarp();
#endif

  const int chunks = (groups.count + kChunk - 1) / kChunk;
  const Walk walk{p, tiles, groups, chunks, ring, barriers};
  const int stages = walk.stages();
#pragma unroll
  for (int i = 0; i < kDepth; ++i) {
    if (i < stages) walk.fetch(i, i, lane);
#if !W4_DECODE_BULK
    if (i + 1 < kDepth) async_commit();
#endif
  }
  if (lane == 0)
    for (int i = kDepth; i < min(stages, kDepth + ahead); ++i) walk.prefetch(i);

  wait_for_predecessors();

  // The warp's share of x, one row of its groups after another.
  {
    const u16* source = x + static_cast<size_t>(groups.first) * kGroup;
    const int row_bytes = groups.count * 2 * kGroup;
#if W4_DECODE_BULK
    if (lane == 0 && row_bytes > 0) barrier_expect(x_full, m * row_bytes);
    __syncwarp();
    if (row_bytes > 0) {
      for (int row = lane; row < m; row += 32)
        bulk_copy(x_shared + row * pitch, source + static_cast<size_t>(row) * k, row_bytes, x_full);
      barrier_wait(x_full, 0);
    }
#else
    for (int row = 0; row < m; ++row)
      for (int i = lane; i < row_bytes / 16; i += 32)
        async_copy_16(x_shared + row * pitch + 16 * i, source + static_cast<size_t>(row) * k + 8 * i);
    async_commit();
    async_wait<0>();
    __syncwarp();
#endif
  }
  u32 x_rows[kNT];
#pragma unroll
  for (int t = 0; t < kNT; ++t)
    x_rows[t] = x_shared + min(8 * t + lane % 8, m - 1) * pitch + 16 * (lane / 8);
  sum_groups(x_rows, sums, groups.count, lane);
  __syncwarp();

  const Reduction reduction{p, tiles, partials, cluster_sums, warp, lane, thread, rank};
  int slot = 0, stage = 0;
  u32 parity = 0;
  for (int index = 0; index < tiles.count; ++index) {
    float total[kNT][4] = {};
    for (int done = 0; done < groups.count; done += kChunk) {
#if W4_DECODE_BULK
      barrier_wait(barriers + 8 * slot, parity);
#else
      async_wait<kDepth - 1>();
      __syncwarp();
#endif
      const u32 buffer = ring + slot * kStageBytes;
      const auto add = [&](int g) {
        add_group(total, buffer + g * kCodeBytes + 16 * lane,
                  buffer + kChunk * kCodeBytes + g * kScaleBytes + 8 * (lane / 4), x_rows,
                  (done + g) * 2 * kGroup, sums + 4 * ((done + g) * kTokens + 2 * (lane % 4)));
      };
      if (done + kChunk <= groups.count) {
#pragma unroll
        for (int g = 0; g < kChunk; ++g) add(g);
      } else {
#pragma unroll 1
        for (int g = 0; g < groups.count - done; ++g) add(g);
      }
      __syncwarp();
      if (stage + kDepth < stages) walk.fetch(stage + kDepth, slot, lane);
#if !W4_DECODE_BULK
      async_commit();
#endif
      ++stage;
      if (++slot == kDepth) slot = 0, parity ^= 1;
    }
    reduction.add_tile(index, total);
  }
  reduction.finish();
}
