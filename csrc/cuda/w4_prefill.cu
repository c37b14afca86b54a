// Y = X . W^T (+ bias) for many tokens, 4-bit weights in the w4 tiles, on sm_90a.
//
// Every block is one producer warp and two consumer warpgroups. The producer keeps a ring of
// stages of 64 inputs: W4_TOKENS tokens (tensor copies into the 128-byte swizzle; each block of a
// cluster fetches its share and multicasts it) and the code tiles of 128 W4_ROW_BLOCKS output
// rows (bulk copies; the tiles need no tensor map). A consumer warpgroup turns its codes into
// BF16 A fragments in registers while the tensor cores work on the step before (two register
// sets, one wgmma group in flight) and accumulates Y^T in FP32. Blocks are persistent; tiles that
// do not fill a round are shared out along K and summed in a fixed order through the workspace.
//
// Compile-time: W4_TOKENS (tokens a tile, multiple of 32 up to 256), W4_ROW_BLOCKS (64-row blocks
// a warpgroup, 1 or 2; times W4_TOKENS at most 256), W4_CLUSTER (blocks that share a token tile, 1
// or 2), W4_STAGES.
// Launch: block 384 threads; grid = W4_CLUSTER x workers, all resident at once (one block an SM);
// dynamic shared memory W4_STAGES * stage_bytes + 16384 + 1024 + 256 bytes (kernel constants
// below: stage_bytes = 128 * W4_TOKENS + 4608 * W4_ROW_BLOCKS).
// row_tiles = ceil(n / (128 * W4_ROW_BLOCKS * W4_CLUSTER)); token_tiles = ceil(m / W4_TOKENS).
// x_map: tensor map of X: BF16, dims {k, m}, box {64, W4_TOKENS / W4_CLUSTER}, 128-byte swizzle,
// zero fill. k is a multiple of 128; n a multiple of 8; y and bias 16-byte aligned.
// workspace (only where stream_tiles > 0): grid * 128 * W4_ROW_BLOCKS * W4_TOKENS floats, 16-byte
// aligned; flags: grid * 2 ints, zero before the first launch, left zero by every launch.
#include "w4_exchange.cuh"
#include "w4_prefill_consumer.cuh"
#include "w4_prefill_producer.cuh"
#include "w4_prefill_store.cuh"

namespace w4_prefill {

__device__ __forceinline__ void consume(const Shared& shared, const w4::Problem& problem,
                                        int worker, const Output& output, float* workspace,
                                        int* flags) {
  const int warpgroup = threadIdx.x / kWarpgroup - 1;
  const int rank = kCluster == 1 ? 0 : cluster_rank();
  const int barrier = 1 + warpgroup;
  const w4::Exchange<kWarpgroup, kSums> exchange(workspace, flags, rank * kConsumers + warpgroup,
                                                 kCluster * kConsumers, barrier);
  Consumer consumer(shared);
  w4::Schedule schedule(problem, worker);
  w4::Segment segment;
  float sums[kSums];
  while (schedule.next(segment)) {
    consumer.accumulate(sums, segment);
    if (segment.begin > 0) {
      exchange.publish(sums, worker);
      continue;
    }
    if (segment.end < problem.groups) exchange.collect(sums, problem, segment, worker);
    const w4::TilePosition at = w4::tile_position(problem, segment.tile);
    const int row = (at.row_tile * kCluster + rank) * kRows + warpgroup * kRowBlocks * 64;
#pragma unroll
    for (int block = 0; block < kRowBlocks; ++block)
      store_tile<kTokens>(sums + block * kBlockSums, output, row + 64 * block,
                          at.token_tile * kTokens, shared.store + warpgroup * 2 * kStoreBytes,
                          barrier);
  }
}

}  // namespace w4_prefill

extern "C" __global__ void __launch_bounds__(w4_prefill::kThreads, 1)
#if W4_CLUSTER > 1
    __cluster_dims__(W4_CLUSTER, 1, 1)
#endif
    w4_prefill_linear(const __grid_constant__ w4_prefill::TensorMap x_map, const uint4* codes,
                      const uint2* params, const unsigned short* bias, unsigned short* y,
                      float* workspace, int* flags, int m, int n, int k, int band,
                      int stream_tiles) {
  using namespace w4_prefill;
  extern __shared__ unsigned char memory[];
  const Shared shared((shared_address(memory) + 1023u) & ~1023u);
  const w4::Problem problem{(n + kRows * kCluster - 1) / (kRows * kCluster),
                        (m + kTokens - 1) / kTokens,
                        k / 128,
                        band,
                        stream_tiles,
                        static_cast<int>(gridDim.x) / kCluster};
  const int worker = blockIdx.x / kCluster;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      barrier_init(shared.full + 8 * stage, 1);
      barrier_init(shared.empty + 8 * stage, 4 * kConsumers * kCluster);
    }
    barrier_init_fence();
  }
  launch_dependents();
  if (kCluster == 1)
    __syncthreads();
  else
    cluster_sync();

  if (threadIdx.x < kWarpgroup) {
    release_registers<40>();
    const Weights weights{codes, params, (n + 15) / 16};
    if (threadIdx.x < 32) Producer(shared, x_map, weights, problem.groups).run(problem, worker);
  } else {
    claim_registers<232>();
    consume(shared, problem, worker, Output{y, bias, m, n}, workspace, flags);
  }
  // A block must outlive the arrivals and multicasts of the other one.
  if (kCluster > 1) cluster_sync();
}
