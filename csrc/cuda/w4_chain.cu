// Several linears in a row, for up to 8 or 16 rows of x, in one launch: y_i = x_i · W_iᵀ (+ bias_i),
// where x_i is the first k_i columns of y_(i-1). sm_90 and up.
//
// Blocks stay, one a multiprocessor, and their rings never rest: while a linear's last sums are on
// their way from block to block, the next one's weights arrive. Sums pass through a set of the
// workspace in which what is not yet there has bits that no sum has, so that readers need no flag. Of
// the two sets every launch uses one and clears the other. Otherwise as w4_stationary.cu.
//
// Compile-time: W4_STAGES (of the ring), W4_LINEARS (at most), W4_TOKEN_TILES (of 8 rows: 1 or 2).
// Launch: grid blocks all resident at once, at least `slices`; block 640 threads; dynamic shared memory
//   = 128 * ceil((20 * W4_STAGES + 56) / 128) + 16384 * W4_TOKEN_TILES + 34816 * W4_STAGES bytes.
// A slice of K is at most 4096 inputs. x, codes, scales 16-byte aligned, y 4-byte.
// workspace: a header of 128 bytes, zero before the first launch, and two sets of set_bytes (a
//   multiple of 16) whose bytes are all 255 before the first launch. A set: 8 ints for each linear,
//   the tickets, then exchanges (2 * m * n, rounded up to 32, bytes of each linear but the last, at 16-byte aligned offsets)
//   and partials (of linears with slices: row tiles * slices * 512 * W4_TOKEN_TILES bytes).
#include "w4_chain_sums.cuh"

#ifdef W4_NO_COPY
#define NO_COPY 1
#else
#define NO_COPY 0
#endif

namespace w4_chain {

constexpr int kStages = W4_STAGES;
constexpr int kReducers = 2;  // each has its buffer of sums: a barrier tells only two phases apart
constexpr int kStageBytes = kStageGroups * (kCodeBytes + kScaleBytes);
constexpr int kThreads = 32 * (kWarps + 4);  // registers pass between groups of four warps
constexpr int kConsumerRegisters = kWarps == 16 ? 112 : 232, kOtherRegisters = 32;
constexpr int kEnd = -1;                 // in place of a row tile: the linear, or the chain, is done
constexpr int kLast = 1 << 30;           // with a row tile: it is the linear's last one of this block
constexpr int kLinearShift = 24;         // with a row tile of sums: whose it is
constexpr int kHeaderBytes = 128;

struct Chain {
  Linear linear[W4_LINEARS];
  const u16* x;
  int count, m, set_bytes;
};

// Shared memory, from its start.
constexpr int kFull = 0;                                // kStages barriers: a stage has arrived
constexpr int kEmpty = kFull + 8 * kStages;             // kStages: a stage has been read
constexpr int kSumFull = kEmpty + 8 * kStages;          // kReducers: the warps' sums are written
constexpr int kSumEmpty = kSumFull + 8 * kReducers;     // kReducers: ... and read
constexpr int kChosen = kSumEmpty + 8 * kReducers;      // it is known which set is whose
constexpr int kReady = kChosen + 8;                     // of a linear's x most is there
constexpr int kOdd = kReady + 8;                        // the set of this launch
constexpr int kTileOf = kOdd + 4;                       // the row tile of a stage
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

// The set of this launch, once the predecessors are over.
__device__ __forceinline__ unsigned char* own_set(unsigned char* workspace, u32 base, int set_bytes) {
  barrier_wait(base + kChosen, 0);
  return workspace + kHeaderBytes + static_cast<size_t>(load_int(base + kOdd)) * set_bytes;
}

// ---- the producer: one lane ---------------------------------------------------------------------

class Producer {
 public:
  __device__ __forceinline__ Producer(const Chain& chain, u32 base, unsigned char* workspace)
      : chain_(chain), base_(base), workspace_(workspace) {}

  __device__ __forceinline__ void run() {
#pragma unroll 1
    for (int i = 0; i < chain_.count; ++i) {
      const Linear& linear = chain_.linear[i];
      const Share share(linear);
      // All but the last fifth is dealt: who is slower then draws less of the rest. Of the first linear
      // all is, since which set holds the tickets is known only when the predecessors are over.
      const int dealt = i == 0 ? share.tiles : share.tiles * 4 / 5 / share.step * share.step;
      const auto after = [&](int tile) {
        tile += share.step;
        if (tile < dealt || dealt == share.tiles) return tile;
        return dealt + draw(i, share.slice);
      };
      STAMP(i, 0);
      int tile = after(share.first_tile - share.step);
      if (tile >= share.tiles) skip();
#pragma unroll 1
      while (tile < share.tiles) {
        const int next = after(tile);
        fetch(linear, share, tile, next >= share.tiles ? kLast : 0);
        tile = next;
      }
      STAMP(i, 1);
    }
  }

 private:
  __device__ __forceinline__ int draw(int linear, int slice) {
    unsigned char* set = own_set(workspace_, base_, chain_.set_bytes);
    int* drawn = reinterpret_cast<int*>(set + kLinearBytes * linear) + slice;
    return atomicAdd(drawn, 1) + 1;  // -1 before the first.
  }

  __device__ __forceinline__ void fetch(const Linear& linear, const Share& share, int tile, int last) {
    const u32 full = base_ + kFull + 8 * ring_.stage;
    wait_empty();
    store_int(base_ + kTileOf + 4 * ring_.stage, tile | last);
    const size_t at = static_cast<size_t>(tile) * (linear.k / kGroup) + share.first_group;
    const u32 target = base_ + kRing + ring_.stage * kStageBytes;
    if (!NO_COPY) {
      barrier_expect(full, share.groups * (kCodeBytes + kScaleBytes));
      bulk_copy(target, linear.codes + at * kCodeBytes, share.groups * kCodeBytes, full);
      bulk_copy(target + kStageGroups * kCodeBytes, linear.scales + at * kScaleBytes,
                share.groups * kScaleBytes, full);
    } else {
      barrier_arrive(full);
    }
    ring_.advance();
  }

  // A linear of which this block has no row tile.
  __device__ __forceinline__ void skip() {
    wait_empty();
    store_int(base_ + kTileOf + 4 * ring_.stage, kEnd);
    barrier_arrive(base_ + kFull + 8 * ring_.stage);
    ring_.advance();
  }

  __device__ __forceinline__ void wait_empty() const {
    barrier_wait(base_ + kEmpty + 8 * ring_.stage, ring_.parity ^ 1);
  }

  const Chain& chain_;
  u32 base_;
  unsigned char* workspace_;
  Ring ring_;
};

// ---- the consumers ------------------------------------------------------------------------------

// index: of the row tile among the block's. what: the row tile and its linear, or kEnd.
__device__ __forceinline__ void hand_over(u32 base, u32 index, int what,
                                          const float (&total)[kTokenTiles][4], int warp, int lane) {
  const u32 buffer = index % kReducers;
  const u32 partials = base + kPartials + (buffer * kWarps + warp) * kPartialBytes + 16 * lane;
  barrier_wait(base + kSumEmpty + 8 * buffer, (index / kReducers & 1) ^ 1);
#pragma unroll
  for (int t = 0; t < kTokenTiles; ++t) store_shared_16(partials + 512 * t, total[t]);
  if (warp == 0 && lane == 0) store_int(base + kTileOfSum + 4 * buffer, what);
  __syncwarp();
  if (lane == 0) barrier_arrive(base + kSumFull + 8 * buffer);
}

__device__ __forceinline__ void consume(const Chain& chain, u32 base, unsigned char* workspace,
                                        int warp, int lane) {
  u32 codes = base + kRing + warp * kCodeBytes + 16 * lane;
  u32 scales = base + kRing + kStageGroups * kCodeBytes + warp * kScaleBytes + 8 * (lane / 4);
  keep(codes);
  keep(scales);
  Ring ring;
  u32 index = 0;
  unsigned char* set = nullptr;
#pragma unroll 1
  for (int i = 0; i < chain.count; ++i) {
    const Linear& linear = chain.linear[i];
    const Share share(linear);
    const int first = share.first_group + warp, end = share.first_group + share.groups;
    StationaryX x;
    if (i == 0) {
      wait_for_predecessors();
      x.load<false>(chain.x, chain.m, linear.k, first, end, lane, i);
    } else {
      set = own_set(workspace, base, chain.set_bytes);
      const Linear& before = chain.linear[i - 1];
      barrier_wait(base + kReady, (i - 1) & 1);
      x.load<true>(reinterpret_cast<const u16*>(set + before.exchange), chain.m,
                   exchange_stride(before.n), first, end, lane, i);
    }
    if (warp == 0 && lane == 0) STAMP(i, 2);
    int nth = 0;
    int tile;
#pragma unroll 1
    do {
      barrier_wait(base + kFull + 8 * ring.stage, ring.parity);
      tile = load_int(base + kTileOf + 4 * ring.stage);
      float total[kTokenTiles][4] = {};
#pragma unroll
      for (int j = 0; j < kWarpGroups; ++j) {
        const u32 at = ring.stage * kStageBytes + j * kWarps * kCodeBytes;
        const uint4 words[2] = {load_shared_16(codes + at), load_shared_16(codes + at + 512)};
        uint2 params = load_shared_8(scales + ring.stage * kStageBytes + j * kWarps * kScaleBytes);
        // What lies there is of another row tile; no input of such a group is other than 0.
        if (warp + j * kWarps >= share.groups) params = {0, 0};
        if (j == kWarpGroups - 1) {
          __syncwarp();
          if (lane == 0) barrier_arrive(base + kEmpty + 8 * ring.stage);
        }
#ifndef W4_NO_MATH
        x.add_group(total, j, words, params);
#else
        total[0][0] += __uint_as_float(words[0].x ^ words[1].y ^ params.x);
#endif
      }
      ring.advance();
      if (tile == kEnd) break;
      x.scale(total);
      hand_over(base, index++, tile & ~kLast | i << kLinearShift, total, warp, lane);
      if (warp == 0 && lane == 0 && nth < 24) STAMP(i, 8 + nth);
      ++nth;
    } while (!(tile & kLast));
    if (warp == 0 && lane == 0) STAMP(i, 3);
    if (linear.slices > 1) {
      set = own_set(workspace, base, chain.set_bytes);
      join_slices(linear, chain.m, set, i + 1 < chain.count ? set : nullptr,
                  hint(set, i), gridDim.x * warp + blockIdx.x, kWarps * gridDim.x, lane);
    }
    if (warp == 0 && lane == 0) STAMP(i, 5);
    __syncwarp();
  }
  const float nothing[kTokenTiles][4] = {};
  for (int r = 0; r < kReducers; ++r) hand_over(base, index + r, kEnd, nothing, warp, lane);
}

// ---- the reducers -------------------------------------------------------------------------------

__device__ __forceinline__ void reduce(const Chain& chain, u32 base, unsigned char* workspace,
                                       int reducer, int lane) {
  unsigned char* const set = own_set(workspace, base, chain.set_bytes);
#pragma unroll 1
  for (u32 parity = 0;; parity ^= 1) {
    barrier_wait(base + kSumFull + 8 * reducer, parity);
    const int what = load_int(base + kTileOfSum + 4 * reducer);
    if (what == kEnd) return;
    float sum[kTokenTiles][4] = {};
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t)
      add_partials(sum[t], base + kPartials + reducer * kWarps * kPartialBytes + 512 * t + 16 * lane);
    __syncwarp();
    if (lane == 0) barrier_arrive(base + kSumEmpty + 8 * reducer);
    const int i = what >> kLinearShift, tile = what & (1 << kLinearShift) - 1;
    const Linear& linear = chain.linear[i];
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t)
      if (linear.slices > 1) {
        const uint4 bits = {__float_as_uint(sum[t][0]), __float_as_uint(sum[t][1]),
                            __float_as_uint(sum[t][2]), __float_as_uint(sum[t][3])};
        if (8 * t + lane % 4 * 2 < chain.m)
          store_now(slots(linear, set, tile, blockIdx.x % linear.slices, t, lane), bits);
      } else {
        store_rows(linear, chain.m, i + 1 < chain.count ? set : nullptr, tile, t, sum[t], lane);
        if (lane == 0) count_up(hint(set, i));
      }
    if (reducer == 0 && lane == 0) STAMP(i, 4);
  }
}

// ---- the sets of the workspace ------------------------------------------------------------------

// header: the number of launches before this one, and of this one's blocks that know it.
__device__ __forceinline__ void choose_set(u32 base, unsigned char* workspace, int set_bytes,
                                           int lane) {
  int* header = reinterpret_cast<int*>(workspace);
  wait_for_predecessors();
  const int odd = __ldcg(header) & 1;
  __syncwarp();
  if (lane == 0) {
    store_int(base + kOdd, odd);
    barrier_arrive(base + kChosen);
    if (atomicAdd(header + 1, 1) + 1 == static_cast<int>(gridDim.x)) {
      header[1] = 0;
      header[0] = odd ^ 1;
    }
  }
  const uint4 missing = {kMissing, kMissing, kMissing, kMissing};
  uint4* other = reinterpret_cast<uint4*>(workspace + kHeaderBytes +
                                          static_cast<size_t>(odd ^ 1) * set_bytes);
  for (int i = 32 * blockIdx.x + lane; i < set_bytes / 16; i += 32 * gridDim.x)
    __stcg(other + i, missing);
}

// Tells the consumers when to look for their inputs: many that looked all the time would keep the
// memory's partitions busy.
__device__ __forceinline__ void watch(const Chain& chain, u32 base, unsigned char* workspace) {
  unsigned char* set = own_set(workspace, base, chain.set_bytes);
#pragma unroll 1
  for (int i = 0; i + 1 < chain.count; ++i) {
    const int all = (chain.linear[i].n + 15) / 16 * kTokenTiles;
    while (load_now(hint(set, i)) < all - 1 - all / W4_EARLY) {  // -1 before the first
    }
    STAMP(i + 1, 6);
    barrier_arrive(base + kReady);
  }
}

extern __shared__ __align__(128) unsigned char shared_memory[];

}  // namespace w4_chain

extern "C" __global__ void __launch_bounds__(w4_chain::kThreads, 1)
    w4_chain_kernel(const __grid_constant__ w4_chain::Chain chain, unsigned char* workspace) {
  using namespace w4_chain;
  launch_dependents();
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
    barrier_init(base + kChosen, 1);
    barrier_init(base + kReady, 1);
    barrier_init_fence();
  }
  __syncthreads();

  if (warp < kWarps) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kConsumerRegisters));
    consume(chain, base, workspace, warp, lane);
  } else {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kOtherRegisters));
    if (warp == kWarps) {
      if (lane == 0) Producer(chain, base, workspace).run();
    } else if (warp <= kWarps + kReducers) {
      reduce(chain, base, workspace, warp - kWarps - 1, lane);
    } else {
      choose_set(base, workspace, chain.set_bytes, lane);
      if (lane == 0) watch(chain, base, workspace);
    }
  }
}
