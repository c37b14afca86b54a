// y = x · Wᵀ (+ bias) for few rows of x (decode) on sm_80 and up: x [M, K] BF16, W [N, K] in w4
// tiles, y [M, N] BF16. The kernel of sm_90 is w4_decode.cu; this one needs only cp.async.
//
// Every warp owns a share of K of every row tile of its block, and a ring of its own through which
// the codes of its share flow; a lane copies exactly the codes that it will read. After each row
// tile the block adds up its warps' sums.
//
// Macros: W4_NT (n8 tiles of tokens, M <= 8 * W4_NT), W4_WARPS (of a block), W4_DEPTH (groups of
// 128 inputs in a warp's ring).
// Launch: grid = min(blocks that fit the device at once, ceil(N / 16)), block = 32 * W4_WARPS,
//   dynamic shared memory = W4_WARPS * (1280 * W4_NT + 1088 * W4_DEPTH + M * (256 * S + 16)) bytes
//   with S = ceil(K / 128 / W4_WARPS).
// Alignment: x, codes and scales 16 bytes, y 4 bytes. No workspace.
#include "w4_decode_tile.cuh"

namespace w4_decode {

constexpr int kWarps = W4_WARPS;
constexpr int kDepth = W4_DEPTH;
constexpr int kThreads = 32 * kWarps;
constexpr int kStageBytes = kCodeBytes + kScaleBytes;

// A warp's walk over (row tile, group), one stage a group.
struct Walk {
  const unsigned char* codes;   // of the next stage, the lane's own 16 bytes
  const unsigned char* scales;  // of the next stage
  size_t skip;                  // groups between the end of a tile's share and the next tile's
  int group, groups, left;      // next group, groups a tile, stages not yet fetched

  __device__ __forceinline__ void fetch(u32 target, int lane) {
    if (left > 0) {
      copy_async(target + 16 * lane, codes);
      copy_async(target + 512 + 16 * lane, codes + 512);
      if (lane < kScaleBytes / 16)
        copy_async(target + kCodeBytes + 16 * lane, scales + 16 * lane);
      const size_t step = ++group == groups ? 1 + skip : 1;
      if (group == groups) group = 0;
      codes += step * kCodeBytes;
      scales += step * kScaleBytes;
      --left;
    }
    commit_copies();
  }
};

__device__ __forceinline__ void copy_x(const Problem& p, const Share& groups, u32 target, int pitch,
                                       int lane) {
  for (int row = 0; row < p.m; ++row) {
    const u16* source = p.x + static_cast<size_t>(row) * p.k + groups.first * kGroup;
    for (int i = lane; i < groups.count * 16; i += 32)
      copy_async(target + row * pitch + 16 * i, source + 8 * i);
  }
}

extern __shared__ __align__(128) unsigned char shared_memory[];

}  // namespace w4_decode

extern "C" __global__ void __launch_bounds__(w4_decode::kThreads)
    w4_decode_portable_kernel(const unsigned char* codes, const unsigned char* scales,
                              const unsigned short* x, const unsigned short* bias, unsigned short* y,
                              int m, int n, int k) {
  using namespace w4_decode;
  const Problem p{codes, scales, x, bias, y, m, n, k};
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const Share tiles = share_of((n + 15) / 16, gridDim.x, blockIdx.x);
  const Share groups = share_of(k / kGroup, kWarps, warp);
  const int pitch = (k / kGroup + kWarps - 1) / kWarps * 2 * kGroup + 16;
  const u32 partials = shared_address(shared_memory);
  const u32 rings = partials + 2 * kWarps * kPartialFloats * 4;
  const u32 ring = rings + warp * kDepth * kStageBytes;
  const u32 x_shared = rings + kWarps * kDepth * kStageBytes + warp * m * pitch;

  const size_t start = static_cast<size_t>(tiles.first) * (k / kGroup) + groups.first;
  Walk walk{codes + start * kCodeBytes + 16 * lane, scales + start * kScaleBytes,
            static_cast<size_t>(k / kGroup - groups.count), 0, groups.count,
            tiles.count * groups.count};
  copy_x(p, groups, x_shared, pitch, lane);
  for (int i = 0; i < kDepth; ++i) walk.fetch(ring + i * kStageBytes, lane);
  u32 x_rows[kNT];
  find_rows(x_rows, x_shared, pitch, m, lane);

  int slot = 0;
  for (int index = 0; index < tiles.count; ++index) {
    float total[kNT][4] = {};
    for (int g = 0; g < groups.count; ++g) {
      wait_for_copies<kDepth - 1>();
      __syncwarp();
      const u32 stage = ring + slot * kStageBytes;
      Group group;
      load_group(group, stage + 16 * lane, stage + kCodeBytes + 8 * (lane / 4), x_rows,
                 g * 2 * kGroup);
      __syncwarp();
      add_group(total, group);
      walk.fetch(stage, lane);
      if (++slot == kDepth) slot = 0;
    }
    const u32 buffer = partials + (index & 1) * kWarps * kPartialFloats * 4;
    store_partial(buffer + warp * kPartialFloats * 4, total, lane);
    __syncthreads();
    for (int pair = thread; pair < kPairs; pair += kThreads)
      store_pair(p, tiles.first + index, pair, add_partials<kWarps>(buffer, pair));
  }
}
