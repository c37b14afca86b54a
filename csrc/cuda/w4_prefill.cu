// Y = X . W^T (+ bias) for any number of tokens, 4-bit weights in the w4 tiles, on sm_90a.
//
// A block is two producer threads and W4_CONSUMERS warpgroups of 64 or 128 output rows each.
// The producers keep a ring of stages of 64 or 128 inputs: W4_TOKENS tokens (in the 128-byte swizzle;
// each block of a cluster fetches its share and multicasts it) and the rows' code tiles. A consumer
// warpgroup turns its codes into BF16 A fragments in registers while the tensor cores work on the
// ones before, and accumulates Y^T in FP32. Blocks are persistent; tiles that do not fill a round are
// shared out along K and summed in a fixed order through the workspace. With W4_SPLIT, the blocks of
// a cluster share one tile along K instead and sum it through distributed shared memory.
//
// Compile-time: W4_TOKENS (tokens a tile: 8, 16, 32, 48, 64, 96, 128 or 256; 8 for no more tokens than
// that), W4_CONSUMERS (1 to 4; 128 tokens at most with 4), W4_ROW_BLOCKS (64 rows each, of a consumer;
// more than 1 with 8 tokens only), W4_CLUSTER (blocks that share a token tile, 1 or 2), W4_SPLIT
// (blocks that share a tile, up to 8; not with W4_CLUSTER), W4_STAGES, W4_BLOCKS (of an SM, 1 to 3),
// W4_BATCH (k16 steps a batch of wgmma: 1, 2 or 4; of no effect with 8 tokens), W4_SCALE_SUMS (1: a
// group's scales meet its sums in FP32, up to 64 tokens, and always with 8; 0: they meet the weights).
// Launch: block 128 * (W4_CONSUMERS + 1) threads; dynamic shared memory, with
//   R = W4_CONSUMERS * W4_ROW_BLOCKS (64 rows each), H = 1 + W4_SCALE_SUMS (halves of a group a
//   stage), S store tokens, 32, 16 or 8 (kStoreTokens),
//   W4_STAGES * (H * (128 * W4_TOKENS + 2048 * R) + 256 * R + 16) + 256 * S * W4_CONSUMERS
//   + 8 * W4_CONSUMERS + 1024 bytes, with W4_SPLIT > 1 another
//   256 * S * W4_SPLIT * ceil(R * W4_TOKENS / S / W4_SPLIT) bytes.
// row_tiles = ceil(n / (64 * R * W4_CLUSTER)); token_tiles = ceil(m / W4_TOKENS);
// tiles = row_tiles * token_tiles.
// With W4_SPLIT = 1: grid W4_CLUSTER * workers, all resident at once. Else: grid W4_SPLIT * tiles,
// stream_tiles 0, k / 128 >= W4_SPLIT.
// k is a multiple of 128, n of 8; y and bias (or null) 16-byte aligned.
// Tensor maps, rank 2, zero fill:
//   x      BF16 {k, m}                           box {64, W4_TOKENS / W4_CLUSTER}, 128-byte swizzle
//   codes  u32  {k / 64 * 128, ceil(n / 16)}     box {128 * H, 4 * R}, no swizzle
//   params u32  {k / 128 * 16, ceil(n / 16)}     box {16, 4 * R}, no swizzle
// band: token tiles that neighbouring workers spread over before they move on to further rows.
// stream_tiles: how many tiles are shared out along K: 0, or any number with
// stream_tiles * k / 128 >= workers.
// workspace (where stream_tiles > 0): grid * 64 * R * W4_TOKENS floats, 16-byte aligned;
// flags: grid * W4_CONSUMERS ints, zero before the first launch, left zero by every launch.
#include "w4_exchange.cuh"
#include "w4_prefill_cluster_sum.cuh"
#include "w4_prefill_producer.cuh"
#include "w4_prefill_store.cuh"
#if W4_TOKENS == 8
#include "w4_prefill_warps.cuh"
#else
#include "w4_prefill_consumer.cuh"
#endif

namespace w4_prefill {

#if W4_TOKENS == 8
using Consumer = WarpConsumer;
#else
using Consumer = WarpgroupConsumer;
#endif

// What a consumer warpgroup does: its worker's segments, one after the other.
class Warpgroup {
 public:
  __device__ __forceinline__ Warpgroup(const Shared& shared, const w4::Problem& problem,
                                       int worker, const Output& output, float* workspace,
                                       int* flags)
      : shared_(shared), problem_(problem), worker_(worker),
        index_(threadIdx.x / kWarpgroup), rank_(kCluster == 1 ? 0 : cluster_rank()),
        consumer_(shared),
        exchange_(workspace, flags, rank_ * kConsumers + index_, kCluster * kConsumers, 1 + index_),
        output_rows_(output.n), store_(output, shared.store + index_ * 2 * kStoreBytes, 1 + index_) {}

  __device__ __forceinline__ void run() {
    w4::Schedule schedule(problem_, worker_);
    w4::Segment segment;
    float sums[kSums];
    while (schedule.next(segment)) {
      consumer_.accumulate(sums, segment);
      if constexpr (kSplit > 1) {
        const ClusterSum cluster(shared_, index_);
        cluster_wait();  // Until the others' barriers are there.
        cluster.send(sums);
        cluster.receive([&](const float(&part)[kPart], int index) {
          store_part(part, segment.tile, index);
        });
      } else if (segment.begin > 0) {
        exchange_.publish(sums, worker_);
      } else {
        if (segment.end < problem_.groups) exchange_.collect(sums, problem_, segment, worker_);
        store(sums, segment.tile);
      }
    }
  }

 private:
  __device__ __forceinline__ void store(const float (&sums)[kSums], int tile) {
#pragma unroll
    for (int part = 0; part < kSums / kPart; ++part)
      store_part(sums + part * kPart, tile, part);
  }

  __device__ __forceinline__ void store_part(const float* sums, int tile, int part) {
    constexpr int kPasses = kTokens / kStoreTokens;
    const w4::TilePosition at = w4::tile_position(problem_, tile);
    const int first = (at.row_tile * kCluster + rank_) * kRows;
    store_.write(sums, first + 64 * (index_ * kRowBlocks + part / kPasses),
                 min(output_rows_, first + kRows),
                 at.token_tile * kTokens + part % kPasses * kStoreTokens);
  }

  const Shared& shared_;
  const w4::Problem& problem_;
  int worker_;
  int index_;  // among the block's consumers
  int rank_;
  Consumer consumer_;
  w4::Exchange<kWarpgroup, kSums> exchange_;
  int output_rows_;
  Store store_;
};

}  // namespace w4_prefill

extern "C" __global__ void __launch_bounds__(w4_prefill::kThreads, W4_BLOCKS)
#if W4_CLUSTER * W4_SPLIT > 1
    __cluster_dims__(W4_CLUSTER * W4_SPLIT, 1, 1)
#endif
    w4_prefill_linear(const __grid_constant__ w4_prefill::TensorMap x_map,
                      const __grid_constant__ w4_prefill::TensorMap codes_map,
                      const __grid_constant__ w4_prefill::TensorMap params_map,
                      const unsigned short* bias, unsigned short* y, float* workspace, int* flags,
                      int m, int n, int k, int band, int stream_tiles) {
  using namespace w4_prefill;
  extern __shared__ unsigned char memory[];
  const Shared shared((shared_address(memory) + 1023u) & ~1023u);
  const w4::Problem problem{(n + kRows * kCluster - 1) / (kRows * kCluster),
                        (m + kTokens - 1) / kTokens,
                        k / 128,
                        band,
                        stream_tiles,
                        static_cast<int>(gridDim.x) / (kCluster * kSplit),
                        kSplit == 1 ? 0 : static_cast<int>(cluster_rank()),
                        kSplit};
  const int worker = blockIdx.x / (kCluster * kSplit);
  launch_dependents();
  if (threadIdx.x == 0) {
    prefetch_map(codes_map);
    prefetch_map(params_map);
    prefetch_map(x_map);
    for (int stage = 0; stage < kStages; ++stage) {
      barrier_init(shared.full + 8 * stage, 2);
      barrier_init(shared.empty + 8 * stage, 4 * kConsumers * kCluster);
    }
    if constexpr (kSplit > 1) ClusterSum::expect(shared);
    barrier_init_fence();
  }
  if constexpr (kCluster == 1)
    __syncthreads();
  else
    cluster_sync();
  if constexpr (kSplit > 1) cluster_arrive();

  // Read from one lane, so that the compiler knows that a warp takes one branch and may keep its
  // place in the ring in uniform registers.
  const int role = __shfl_sync(0xffffffffu, threadIdx.x / kWarpgroup, 0);
  if (role == kConsumers) {
    release_registers<kProducerRegisters>();
    const Producer producer(shared, problem, worker);
    const int thread = threadIdx.x - kWarpgroup * kConsumers;
    if (thread == 0) producer.run_tokens(x_map);
    if (thread == 32) producer.run_weights(codes_map, params_map);
    if constexpr (kSplit > 1) {
      __syncwarp();
      cluster_wait();
    }
  } else {
    claim_registers<kConsumerRegisters>();
    const Output output{y, bias, m, n};
    Warpgroup(shared, problem, worker, output, workspace, flags).run();
  }
  // A block must outlive the arrivals and multicasts of the other one.
  if (kCluster > 1) cluster_sync();
}
