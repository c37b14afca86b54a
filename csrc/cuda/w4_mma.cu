// Y = X . W^T (+ bias) for many tokens, 4-bit weights in the w4 tiles, with mma.sync: every
// architecture from sm_80 on.
//
// A block of eight warps computes 128 output rows (weights) x W4_TOKENS tokens; a warp 32 rows x
// half of the tokens. Stages of 64 inputs (tokens in an XOR swizzle, code tiles and scale words as
// they are) arrive by cp.async. Weights are the A operand: a lane's 16 bytes of a code tile are
// its fragments of four k16 steps, dequantized in registers. Blocks are persistent; tiles that do
// not fill a round are shared out along K and summed in a fixed order through the workspace.
//
// Compile-time: W4_TOKENS (64 or 128), W4_STAGES.
// Launch: block 256 threads; grid = workers, all resident at once (two blocks an SM where shared
// memory allows, else one); dynamic shared memory W4_STAGES * (128 * W4_TOKENS + 4608) bytes.
// row_tiles = ceil(n / 128); token_tiles = ceil(m / W4_TOKENS). k is a multiple of 128; n a
// multiple of 8; x and y 16-byte aligned.
// workspace (only where stream_tiles > 0): grid * 128 * W4_TOKENS floats, 16-byte aligned; flags:
// grid ints, zero before the first launch, left zero by every launch.
#ifndef W4_TOKENS
#define W4_TOKENS 128
#endif
#ifndef W4_STAGES
#define W4_STAGES 3
#endif

#include "w4_dequantize.cuh"
#include "w4_exchange.cuh"
#include "w4_mma_async.cuh"
#include "w4_mma_store.cuh"
#include "w4_schedule.cuh"

namespace w4_mma {

constexpr int kTokens = W4_TOKENS;
constexpr int kStages = W4_STAGES;
constexpr int kThreads = 256;
constexpr int kRows = 128;
constexpr int kTiles = kRows / 16;
constexpr int kWarpTokens = kTokens / 2;
constexpr int kSums = 2 * kWarpTokens / 8 * 4;
constexpr int kTokenBytes = kTokens * 128;
constexpr int kCodeBytes = kTiles * 512;
constexpr int kParamBytes = kTiles * 64;
constexpr int kStageBytes = kTokenBytes + kCodeBytes + kParamBytes;

struct Operands {
  const unsigned short* x;  // BF16 [m, k]
  const uint4* codes;
  const uint2* params;
  int m, k, row_tiles16;
};

// One segment of a tile: which 64-input slices of which rows and tokens.
struct Span {
  int row_tile;  // in 16 rows
  int token;
  int first_slice;
  int slices;
};

// The 16 bytes `chunk` of a token's 128 lie at chunk XOR token mod 8: ldmatrix meets no conflicts.
__device__ __forceinline__ u32 token_offset(int token, int chunk) {
  return token * 128 + ((chunk ^ (token % 8)) * 16);
}

__device__ __forceinline__ void fetch(const Operands& in, const Span& span, int index, u32 stage) {
  const int slice = span.first_slice + index;
  const int thread = threadIdx.x;
#pragma unroll
  for (int i = 0; i < kTokens * 8 / kThreads; ++i) {
    const int local = i * (kThreads / 8) + thread / 8, chunk = thread % 8;
    const int token = span.token + local;
    const bool inside = token < in.m;
    copy_async(stage + token_offset(local, chunk),
               in.x + static_cast<long long>(inside ? token : 0) * in.k + slice * 64 + chunk * 8,
               inside);
  }
  const int tile = min(span.row_tile + thread / 32, in.row_tiles16 - 1);
  copy_async(stage + kTokenBytes + thread * 16,
             in.codes + (static_cast<long long>(tile) * (in.k / 64) + slice) * 32 + thread % 32,
             true);
  if (thread < kParamBytes / 16) {
    const int param_tile = min(span.row_tile + thread / 4, in.row_tiles16 - 1);
    copy_async(stage + kTokenBytes + kCodeBytes + thread * 16,
               in.params + (static_cast<long long>(param_tile) * (in.k / 128) + slice / 2) * 8 +
                   thread % 4 * 2,
               true);
  }
}

// Multiplies one stage into sums.
__device__ __forceinline__ void multiply(u32 stage, u32 magic, float (&sums)[kSums]) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first_tile = warp / 2 * 2, first_token = warp % 2 * kWarpTokens;
  uint4 codes[2];
  w4::RowParams params[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    codes[half] = load_shared(stage + kTokenBytes + (first_tile + half) * 512 + lane * 16);
    params[half] = w4::unpack_row_params(load_shared_pair(
        stage + kTokenBytes + kCodeBytes + (first_tile + half) * 64 + lane / 4 * 8));
  }
  const int token = first_token + lane % 8 + lane / 16 * 8;
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    u32 weights[2][4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint4 c = codes[half];
      const u32 word = step == 0 ? c.x : step == 1 ? c.y : step == 2 ? c.z : c.w;
      w4::dequantize(word, params[half], magic, weights[half]);
    }
#pragma unroll
    for (int pair = 0; pair < kWarpTokens / 16; ++pair) {
      u32 tokens[4];
      load_matrices(stage + token_offset(token + 16 * pair, 2 * step + lane / 8 % 2), tokens);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        mma(sums + (4 * pair + half) * 4, weights[half], tokens[0], tokens[1]);
        mma(sums + (4 * pair + 2 + half) * 4, weights[half], tokens[2], tokens[3]);
      }
    }
  }
}

__device__ __forceinline__ void accumulate(const Operands& in, const Span& span, u32 shared,
                                           u32 magic, float (&sums)[kSums]) {
#pragma unroll
  for (int i = 0; i < kSums; ++i) sums[i] = 0.0f;
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) {
    if (i < span.slices) fetch(in, span, i, shared + i * kStageBytes);
    commit_copies();
  }
  int stage = 0, free = kStages - 1;
  for (int i = 0; i < span.slices; ++i) {
    wait_for_copies<kStages - 2>();
    __syncthreads();
    if (i + kStages - 1 < span.slices)
      fetch(in, span, i + kStages - 1, shared + free * kStageBytes);
    commit_copies();
    multiply(shared + stage * kStageBytes, magic, sums);
    free = stage;
    if (++stage == kStages) stage = 0;
  }
  __syncthreads();
}

}  // namespace w4_mma

extern "C" __global__ void __launch_bounds__(w4_mma::kThreads, 2)
    w4_mma_linear(const unsigned short* x, const uint4* codes, const uint2* params,
                  const unsigned short* bias, unsigned short* y, float* workspace, int* flags,
                  int m, int n, int k, int band, int stream_tiles) {
  using namespace w4_mma;
  extern __shared__ __align__(128) unsigned char memory[];
  const w4::Problem problem{(n + kRows - 1) / kRows, (m + kTokens - 1) / kTokens, k / 128, band,
                            stream_tiles, static_cast<int>(gridDim.x), 0, 1};
  const Operands in{x, codes, params, m, k, (n + 15) / 16};
  const Output out{y, bias, m, n};
  const int worker = blockIdx.x, warp = threadIdx.x / 32;
  const w4::Exchange<kThreads, kSums> exchange(workspace, flags, 0, 1, 1);
  const u32 magic = w4::opaque_magic();
  launch_dependents();
  wait_for_predecessors();
  w4::Schedule schedule(problem, worker);
  w4::Segment segment;
  float sums[kSums];
  while (schedule.next(segment)) {
    const w4::TilePosition at = w4::tile_position(problem, segment.tile);
    accumulate(in,
               Span{at.row_tile * kTiles, at.token_tile * kTokens, 2 * segment.begin,
                    2 * (segment.end - segment.begin)},
               shared_address(memory), magic, sums);
    if (segment.begin > 0) {
      exchange.publish(sums, worker);
      continue;
    }
    if (segment.end < problem.groups) exchange.collect(sums, problem, segment, worker);
    store_warp_tile<kWarpTokens>(sums, out, at.row_tile * kRows + warp / 2 * 32,
                                 at.token_tile * kTokens + warp % 2 * kWarpTokens);
  }
}
