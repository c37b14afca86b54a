// Several linears in a row in one launch: y_i = x_i · W_iᵀ (+ bias_i) for few rows of x, where x_i may be
// read only when all of y_(i-1) is there. sm_90 and up.
//
// Blocks stay, one a multiprocessor, and their rings of weights never rest: while a linear's last sums
// are written and all blocks meet, the next one's weights arrive. x stands still: each of 16 consumer
// warps keeps two groups' inputs of all tokens in registers, while the row tiles stream past. A stage
// holds 16 groups of one row tile, one a warp; what they made of it they add up a row tile later.
// With W4_PAIR 2 the blocks of a cluster have the same row tiles and tokens of their own, and every
// stage is fetched once for both.
//
// Compile-time: W4_TOKENS (of a block: 8 or 16), W4_PAIR (1 or 2), W4_STAGES (of the ring, even with a
// pair), W4_LINEARS (at most), W4_DEALT (eighths of a linear's row tiles that are not drawn one by one).
// Launch: grid blocks all resident at once, a multiple of W4_PAIR with at least a cluster for each
//   slice; block 640 threads; dynamic shared memory = 128 * ceil((20 * W4_STAGES + 28) / 128)
//   + 2176 * W4_TOKENS + 2048 + 17408 * W4_STAGES bytes.
// m <= W4_PAIR * W4_TOKENS. A slice of K is at most 4096 inputs. x, codes, scales and packets 16-byte
// aligned, y 4-byte.
#include "w4_chain_producer.cuh"
#include "w4_chain_sums.cuh"

namespace w4_chain {

// A warp gives back its part of a stage to all that fetched it.
__device__ __forceinline__ void release(u32 empty, int lane) {
  __syncwarp();
  if constexpr (kPair == 1) {
    if (lane == 0) barrier_arrive(empty);
  } else if (lane < kPair) {
    barrier_arrive_remote(address_in(empty, lane));
  }
}

// A row tile's products, of one warp; false at the linear's end.
__device__ __forceinline__ bool multiply(const StationaryX& x, u32 base, int groups, Ring& ring,
                                         int& tile, float (&total)[kTokenTiles][4], int warp, int lane) {
  const u32 codes = base + kRing + warp * kCodeBytes + 16 * lane;
  const u32 scales = base + kRing + kStageGroups * kCodeBytes + warp * kScaleBytes + 8 * (lane / 4);
#pragma unroll
  for (int j = 0; j < kUnitStages; ++j) {
    barrier_wait(base + kFull + 8 * ring.stage, ring.parity);
    if (j == 0) tile = load_int(base + kTileOf + 4 * ring.stage);
    const bool mine = tile != kEnd && warp < groups - j * kStageGroups;
    if (mine) {
      float sum[kTokenTiles][4] = {};
#ifdef W4_NO_MATH
      sum[0][0] = __uint_as_float(load_shared_16(codes + ring.stage * kStageBytes).x ^ load_shared_16(codes + ring.stage * kStageBytes + 512).y);
#else
      x.add_half(sum, j, 0, load_shared_16(codes + ring.stage * kStageBytes));
      x.add_half(sum, j, 1, load_shared_16(codes + ring.stage * kStageBytes + 512));
#endif
      x.scale(total, sum, j, load_shared_8(scales + ring.stage * kStageBytes));
    }
    release(base + kEmpty + 8 * ring.stage, lane);
    ring.advance();
    if (kPair == 1 && tile == kEnd) break;
  }
  return tile != kEnd;
}

// Sums of a row tile meet while the next one is multiplied: no warp waits for another that is less than
// a row tile behind.
__device__ __forceinline__ void consume(const Chain& chain, u32 base, int warp, int lane,
                                        const Common& common) {
  Ring ring;
  int index = 0;  // of the row tile among the block's
  wait_for_predecessors();
  if (warp == 0 && lane == 0) store_int(base + kMark, *common.mark + 1);
  named_barrier(1, 32 * kWarps);
#pragma unroll 1
  for (int i = 0; i < chain.count; ++i) {
    const Linear& linear = chain.linear[i];
    const Share share(linear);
    StationaryX x(base + kInputs + warp * kInputBytes, lane);
    x.load(linear.x + static_cast<size_t>(rank_in_pair() * W4_TOKENS) * linear.k,
           tokens_of_block(chain.m), linear.k, share.first_group + warp,
           share.first_group + share.groups, lane);
    STAMP(i, 3);
    const int begin = index;
#pragma unroll 1
    for (;;) {
      float total[kTokenTiles][4] = {};
      int tile;
      const bool there = multiply(x, base, share.groups, ring, tile, total, warp, anew(lane));
#ifdef W4_TRACE
      if (begin == index) STAMP(i, 6);
#endif
      if (index > begin) {
        const int last = index - 1;
        barrier_wait(base + kSummed + 8 * (last % 2), last / 2 % 2);
        add_warps(linear, i, chain.m, base, last % 2, common.packets, warp, anew(lane));
      }
      if (!there) break;
      store_partial(base + kPartials + (index % 2 * kWarps + warp) * kPartialBytes, total,
                    anew(lane));
      if (warp == 0 && lane == 0) store_int(base + kTileOfSum + 4 * (index % 2), tile);
      __syncwarp();
      if (lane == 0) barrier_arrive(base + kSummed + 8 * (index % 2));
      ++index;
    }
    const int thread = 32 * warp + lane;
    STAMP(i, 4);
    if (linear.slices > 1) add_slices(linear, chain.m, load_int(base + kMark) + i, common.packets, thread);
    STAMP(i, 7);
    meet(common, i, chain.count, thread);
  }
}

extern __shared__ __align__(128) unsigned char shared_memory[];

}  // namespace w4_chain

extern "C" __global__ void __launch_bounds__(w4_chain::kThreads, 1)
#if W4_PAIR > 1
    __cluster_dims__(W4_PAIR, 1, 1)
#endif
    w4_chain_kernel(const __grid_constant__ w4_chain::Chain chain,
                    const __grid_constant__ w4_chain::Common common) {
  using namespace w4_chain;
  launch_dependents();
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  const u32 base = shared_address(shared_memory);

  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(base + kFull + 8 * i, 1);
      barrier_init(base + kEmpty + 8 * i, kWarps * kPair);
    }
    for (int i = 0; i < 2; ++i) barrier_init(base + kSummed + 8 * i, kWarps);
    barrier_init_fence();
  }
  if constexpr (kPair == 1)
    __syncthreads();
  else
    cluster_sync();

  if (warp < kWarps) {
    claim_registers<kConsumerRegisters>();
    consume(chain, base, warp, lane, common);
  } else {
    release_registers<kProducerRegisters>();
    if (warp == kWarps && lane == 0) Producer(chain, base, common.tickets).run();
  }
  if constexpr (kPair > 1) {  // A block must outlive what the other one sends it.
    __syncwarp();
    cluster_sync();
  }
}
