// Several linears in a row, for up to 8 rows of x, in one launch: y_i = x_i · W_iᵀ (+ bias_i), where x_i
// may be read only when all of y_(i-1) is there. sm_90 and up.
//
// Blocks stay, one a multiprocessor, and their rings never rest: while a linear's last sums are on
// their way and all blocks meet, the next one's weights arrive. Otherwise as w4_stationary.cu.
//
// Compile-time: W4_STAGES (of the ring), W4_LINEARS (at most).
// Launch: grid blocks all resident at once, a multiple of every `slices`; block 640 threads; dynamic
//   shared memory = 128 * ceil((20 * W4_STAGES + 56) / 128) + 16384 + 17408 * W4_STAGES bytes.
// A slice of K is at most 4096 inputs. x, codes, scales 16-byte aligned, y 4-byte.
// meetings: W4_LINEARS ints; tickets: 8 for each linear; arrived: an int for each row tile of the linear
//   with the most, all zero before the first launch and left zero by every launch.
// workspace: for linears with slices: row tiles * slices * 512 bytes each, which may be the same memory.
#include "w4_chain_x.cuh"

namespace w4_chain {

constexpr int kStages = W4_STAGES;
constexpr int kReducers = 2;  // each has its buffer of sums: a barrier tells only two phases apart
constexpr int kStageBytes = kStageGroups * (kCodeBytes + kScaleBytes);
constexpr int kThreads = 32 * (kWarps + 4);  // registers pass between groups of four warps
constexpr int kConsumerRegisters = 112, kOtherRegisters = 32;
constexpr int kEnd = -1;  // in place of a row tile: the linear's end
constexpr int kMostSlices = 8;

struct Chain {
  Linear linear[W4_LINEARS];
  int count, m;
};

// Shared memory, from its start.
constexpr int kFull = 0;                                // kStages barriers: a stage has arrived
constexpr int kEmpty = kFull + 8 * kStages;             // kStages: a stage has been read
constexpr int kSumFull = kEmpty + 8 * kStages;          // kReducers: the warps' sums are written
constexpr int kSumEmpty = kSumFull + 8 * kReducers;     // kReducers: ... and read
constexpr int kReady = kSumEmpty + 8 * kReducers;       // the linear's x may be read
constexpr int kTileOf = kReady + 8;                     // the row tile of a stage
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

__device__ __forceinline__ int load_acquire(const int* address) {
  int value;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
  return value;
}

// ---- the producer: one lane ---------------------------------------------------------------------

class Producer {
 public:
  __device__ __forceinline__ Producer(const Chain& chain, u32 base, int* tickets)
      : chain_(chain), base_(base), tickets_(tickets) {}

  __device__ __forceinline__ void run() {
#pragma unroll 1
    for (int i = 0; i < chain_.count; ++i) {
      const Linear& linear = chain_.linear[i];
      const Share share(linear);
      // All but the last fifth is dealt: who is slower then draws less of the rest.
      const int dealt = i == 0 ? share.tiles : share.tiles * 4 / 5 / share.step * share.step;
#pragma unroll 1
      for (int tile = share.first_tile; tile < dealt; tile += share.step) fetch(linear, share, tile);
      if (i > 0) draw(linear, share, dealt, tickets_ + kMostSlices * i + share.slice);
      wait_empty();
      store_int(base_ + kTileOf + 4 * ring_.stage, kEnd);
      barrier_arrive(base_ + kFull + 8 * ring_.stage);
      ring_.advance();
    }
  }

 private:
  __device__ __forceinline__ void draw(const Linear& linear, const Share& share, int dealt,
                                       int* ticket) {
    const int left = share.tiles - dealt;
    if (left <= 0) return;
    wait_for_predecessors();  // They may still draw tickets of their own.
    int next = atomicAdd(ticket, 1);
    while (next < left) {
      const int upcoming = atomicAdd(ticket, 1);
      fetch(linear, share, dealt + next);
      next = upcoming;
    }
    if (next == left + share.step - 1) *ticket = 0;  // The last one of all.
  }

  __device__ __forceinline__ void fetch(const Linear& linear, const Share& share, int tile) {
#pragma unroll 1
    for (int j = 0; j < kUnitStages; ++j) {
      const u32 full = base_ + kFull + 8 * ring_.stage;
      wait_empty();
      store_int(base_ + kTileOf + 4 * ring_.stage, tile);
      const int count = min(kStageGroups, share.groups - j * kStageGroups);
      if (count > 0) {
        const size_t at = static_cast<size_t>(tile) * (linear.k / kGroup) + share.first_group +
                          j * kStageGroups;
        const u32 target = base_ + kRing + ring_.stage * kStageBytes;
        barrier_expect(full, count * (kCodeBytes + kScaleBytes));
        bulk_copy(target, linear.codes + at * kCodeBytes, count * kCodeBytes, full);
        bulk_copy(target + kStageGroups * kCodeBytes, linear.scales + at * kScaleBytes,
                  count * kScaleBytes, full);
      } else {
        barrier_arrive(full);
      }
      ring_.advance();
    }
  }

  __device__ __forceinline__ void wait_empty() const {
    barrier_wait(base_ + kEmpty + 8 * ring_.stage, ring_.parity ^ 1);
  }

  const Chain& chain_;
  u32 base_;
  int* tickets_;
  Ring ring_;
};

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

__device__ __forceinline__ void consume(const Chain& chain, u32 base, int warp, int lane) {
  const u32 codes = base + kRing + warp * kCodeBytes + 16 * lane;
  const u32 scales = base + kRing + kStageGroups * kCodeBytes + warp * kScaleBytes + 8 * (lane / 4);
  Ring ring;
  int index = 0;
#pragma unroll 1
  for (int i = 0; i < chain.count; ++i) {
    const Share share(chain.linear[i]);
    if (i == 0)
      wait_for_predecessors();
    else
      barrier_wait(base + kReady, (i - 1) & 1);
    StationaryX x;
    x.load(chain.linear[i], chain.m, share.first_group + warp, share.first_group + share.groups, lane);
    for (;; ++index) {
      float total[4] = {};
      int tile = kEnd;
#pragma unroll
      for (int j = 0; j < kUnitStages; ++j) {
        barrier_wait(base + kFull + 8 * ring.stage, ring.parity);
        if (j == 0) tile = load_int(base + kTileOf + 4 * ring.stage);
        const bool mine = tile != kEnd && warp < share.groups - j * kStageGroups;
        uint4 words[2];
        uint2 params;
        if (mine) {
          words[0] = load_shared_16(codes + ring.stage * kStageBytes);
          words[1] = load_shared_16(codes + ring.stage * kStageBytes + 512);
          params = load_shared_8(scales + ring.stage * kStageBytes);
        }
        __syncwarp();
        if (lane == 0) barrier_arrive(base + kEmpty + 8 * ring.stage);
        ring.advance();
        if (tile == kEnd) break;
        if (mine) x.add_group(total, j, words, params);
      }
      if (tile == kEnd) break;
      hand_over(base, index, tile, total, warp, lane);
    }
    // Every reducer learns of the end, and the next row tile is the first one's again.
    const float nothing[4] = {};
    for (int r = 0; r < kReducers; ++r, ++index) hand_over(base, index, kEnd, nothing, warp, lane);
  }
}

// ---- the reducers -------------------------------------------------------------------------------

// The other slices' sums of a row tile; false where others are to come.
__device__ __forceinline__ bool add_slices(float2 (&sum)[kLanePairs], const Linear& linear, int slice,
                                           int m, int tile, float2* workspace, int* arrived,
                                           int lane) {
  float2* slot = workspace + static_cast<size_t>(tile) * linear.slices * (32 * kLanePairs) + lane;
#pragma unroll
  for (int j = 0; j < kLanePairs; ++j)
    if (4 * j < m) __stcg(slot + slice * (32 * kLanePairs) + 32 * j, sum[j]);
  __threadfence();
  __syncwarp();
  int before = 0;
  if (lane == 0) before = atomicAdd(arrived + tile, 1);
  if (__shfl_sync(0xffffffffu, before, 0) + 1 < linear.slices) return false;
  __threadfence();
  if (lane == 0) arrived[tile] = 0;
#pragma unroll
  for (int j = 0; j < kLanePairs; ++j) sum[j] = {0.0f, 0.0f};
  for (int other = 0; other < linear.slices; ++other)
#pragma unroll
    for (int j = 0; j < kLanePairs; ++j)
      if (4 * j < m) {
        const float2 part = __ldcg(slot + other * (32 * kLanePairs) + 32 * j);
        sum[j].x += part.x;
        sum[j].y += part.y;
      }
  return true;
}

// This block's part of linear i is done: the last reducer of all makes room for the next launch.
__device__ __forceinline__ void meet(int* meetings, int i, int count, int lane) {
  __threadfence();
  __syncwarp();
  if (lane != 0) return;
  const int last = kReducers * static_cast<int>(gridDim.x) - 1;
  if (atomicAdd(meetings + i, 1) < last) return;
  if (i > 0) meetings[i - 1] = 0;  // All have read it: they are through with this one.
  if (i == count - 1) meetings[i] = 0;
}

__device__ __forceinline__ void reduce(const Chain& chain, u32 base, int reducer, int lane,
                                       float2* workspace, int* meetings, int* arrived) {
  u32 parity = 0;
#pragma unroll 1
  for (int i = 0; i < chain.count;) {
    const Linear& linear = chain.linear[i];
    barrier_wait(base + kSumFull + 8 * reducer, parity);
    const int tile = load_int(base + kTileOfSum + 4 * reducer);
    float2 sum[kLanePairs] = {};
    if (tile != kEnd) {
#pragma unroll
      for (int j = 0; j < kLanePairs; ++j)
        if (4 * j < chain.m)
          sum[j] = add_partials(base + kPartials + reducer * kWarps * kPartialBytes, 32 * j + lane);
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(base + kSumEmpty + 8 * reducer);
    parity ^= 1;
    if (tile == kEnd) {
      meet(meetings, i++, chain.count, lane);
      continue;
    }
    const int slice = blockIdx.x % linear.slices;
    if (linear.slices > 1 &&
        !add_slices(sum, linear, slice, chain.m, tile, workspace, arrived, lane))
      continue;
#pragma unroll
    for (int j = 0; j < kLanePairs; ++j)
      if (4 * j < chain.m) store_pair(linear, chain.m, tile, 32 * j + lane, sum[j]);
  }
}

// Tells the consumers when all blocks are through with a linear.
__device__ __forceinline__ void watch(const Chain& chain, u32 base, const int* meetings) {
  const int all = kReducers * static_cast<int>(gridDim.x);
  wait_for_predecessors();  // Their meetings are over.
#pragma unroll 1
  for (int i = 0; i + 1 < chain.count; ++i) {
    while (load_acquire(meetings + i) < all) {
    }
    barrier_arrive(base + kReady);
  }
}

extern __shared__ __align__(128) unsigned char shared_memory[];

}  // namespace w4_chain

extern "C" __global__ void __launch_bounds__(w4_chain::kThreads, 1)
    w4_chain_kernel(const __grid_constant__ w4_chain::Chain chain, float2* workspace, int* meetings,
                    int* tickets, int* arrived) {
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
    barrier_init(base + kReady, 1);
    barrier_init_fence();
  }
  __syncthreads();

  if (warp < kWarps) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kConsumerRegisters));
    consume(chain, base, warp, lane);
  } else {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kOtherRegisters));
    if (warp == kWarps) {
      if (lane == 0) Producer(chain, base, tickets).run();
    } else if (warp <= kWarps + kReducers) {
      reduce(chain, base, warp - kWarps - 1, lane, workspace, meetings, arrived);
    } else if (lane == 0) {
      watch(chain, base, meetings);
    }
  }
}
