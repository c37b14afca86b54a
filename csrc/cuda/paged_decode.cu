// Attention of one new token a row over its paged keys and values (decode):
//   out = softmax(scale · q · Kᵀ) · V,  q and out [rows, kv_heads · group, kHeadDim] BF16.
// sm_80 and up. Pages: paged_decode_format.cuh; how the work is shared: paged_decode_line.cuh.
//
// paged_decode_schedule finds once a step who reads what, paged_decode_kernel does it, in every layer.
//
// lengths [rows] counts the keys that a row sees, its own included; rows of length 0 get zeros. Of
// page_table [rows, ...] only the pages that hold visible keys are read. window: a row sees its last
// `window` keys; 0: all. factor, cap: ScoreScale. group, teams: HeadLayout. even_blocks: how many
// blocks of the grid take part where rows are equally long and give all of them work. 0: a grid of
// rows · kv_heads · teams has a block for each, so that the bits of a row do not depend on other rows.
//
// Programmatic launch: lengths, shares, page_table and all keys and values but those of each row's
// newest token are read while predecessors still run. So a launch without overlap must lie between
// whatever writes them and this one (docs/kernels.md).
//
// All query heads of a key-value head are computed together (in teams, where they are more than the
// tensor cores' tiles here hold). A segment that several blocks share is merged by the block that is
// done last, always in the same order, so that the same inputs give the same bits.
//
// Macros: PD_HEAD_DIM, PD_KEY_BITS and PD_VALUE_BITS (16: BF16; 8, 4: codes), PD_HEAD_TILES (n8 tiles
// of query heads), PD_TOKEN_TILES (m16 tiles of tokens in a step), PD_STREAMS (2 where a tile holds the
// heads twice), PD_WARPS (of a block), PD_SLOTS
// (steps in a warp's ring).
// Launch: any grid, best a block for each SM, the same for both kernels. block = 32 · PD_WARPS.
//   dynamic shared memory = 1024 + PD_WARPS · PD_SLOTS · slot (paged_decode_schedule: none),
//   where slot = 16 · PD_TOKEN_TILES · (a row of keys and one of values + 8 for codes' parameters)
//   shares: (48 + 64 · PD_WARPS) · grid bytes.
//   workspace: (2 + PD_WARPS) · grid · record bytes,
//   where record = 512 · PD_HEAD_TILES · (1 + PD_HEAD_DIM / 16 / PD_STREAMS)
//   arrivals: grid integers, zero before the first launch.
// Alignment: q rows 8 bytes, all other pointers 16.
#include "paged_decode_join.cuh"
#include "paged_decode_schedule.cuh"

namespace paged_decode {

// share: not empty. No barrier comes before the walk: a warp reads as soon as it knows what.
__device__ __forceinline__ void attend(const Problem& problem, const BlockShare& share,
                                       const WarpShare& part, SharedMemory& memory) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) memory.shared[i] = share.shared[i], memory.joined[i] = false;
    memory.ring_segments = share.ring_segments;
    for (int i = 0; i < kMostRingSegments; ++i) memory.openers[i] = share.openers[i];
  }
  {
    Walk walk(problem, share.run, memory.pieces);
    walk.go(part, Settle{problem, share.run, memory.pieces});
  }
  __syncthreads();
  join_all_pieces(problem, memory, share.run);
  if (memory.shared[0].parts + memory.shared[1].parts == 0) return;
  __syncthreads();
  if (warp < 2 && lane == 0 && memory.joined[warp])
    arrive(problem, memory.pieces, memory.shared[warp], warp == 1);
  __syncthreads();
  const int left = lane < kWarps ? memory.pieces.left[lane] : 0;
#pragma unroll 1
  for (int i = 0; i < 2; ++i) {
    const int merges = i == 0 ? Pieces::kMergesContinued : Pieces::kMergesOpened;
    if (__any_sync(kAll, (left & merges) != 0)) merge_parts(problem, memory.shared[i]);
  }
}

__device__ __forceinline__ void clear_idle_rows(const Problem& problem, int rows) {
  const int quads = problem.pages.kv_heads * problem.heads.group * kHeadDim / 8;
  awqkit::wait_for_predecessor();
  for (int row = blockIdx.x; row < rows; row += gridDim.x) {
    if (__ldcg(problem.line.lengths + row) > 0) continue;
    uint4* out = reinterpret_cast<uint4*>(problem.out) + static_cast<size_t>(row) * quads;
    for (int i = threadIdx.x; i < quads; i += kThreads) out[i] = make_uint4(0, 0, 0, 0);
  }
}

// Where a block's share lies, and behind it those of its warps.
template <class Quad>
__device__ __forceinline__ Quad* share_of(Quad* shares) {
  constexpr int kQuads = (kBlockShareBytes + kWarps * kWarpShareBytes) / 16;
  return shares + static_cast<size_t>(blockIdx.x) * kQuads;
}

template <class Quad>
__device__ __forceinline__ Quad* share_of_warp(Quad* shares) {
  return share_of(shares) + kBlockShareBytes / 16 + threadIdx.x / 32 * (kWarpShareBytes / 16);
}

}  // namespace paged_decode

// No successor starts before this kernel has ended: the shares are read ahead of a predecessor's end,
// however many kernels overlap between the two.
extern "C" __global__ void __launch_bounds__(paged_decode::kThreads, 1)
    paged_decode_schedule(const int* lengths, const int* page_table, uint4* shares, int rows,
                          int table_stride, int kv_heads, int teams, int window, int even_blocks) {
  using namespace paged_decode;
  __shared__ ScheduleMemory memory;
  awqkit::wait_for_predecessor();
  const Line line{lengths, kv_heads * teams, window};
  Schedule schedule(memory, line, rows, even_blocks);
  const int warp = threadIdx.x / 32;
  WarpShare mine{};
  BlockShare share{};
  share.run = schedule.run();
  share.idle_rows = schedule.has_idle_rows();
  if (share.run.begin < share.run.end) {
    mine = schedule.take_part(PageTable{page_table, table_stride}, kv_heads);
    for (int begins = 0; begins < 2; ++begins) share.shared[begins] = schedule.shared(begins);
    __syncthreads();
    find_groups(schedule.left_pieces(), share);
  }
  if (threadIdx.x % 32 != 0) return;
  if (warp == 0) *reinterpret_cast<BlockShare*>(share_of(shares)) = share;
  *reinterpret_cast<WarpShare*>(share_of_warp(shares)) = mine;
  __threadfence();
}

extern "C" __global__ void __launch_bounds__(paged_decode::kThreads, 1)
    paged_decode_kernel(const unsigned short* q, const unsigned char* keys,
                        const unsigned char* values, const unsigned int* params,
                        const int* page_table, const int* lengths, const uint4* shares,
                        unsigned short* out, float4* workspace, int* arrivals, int rows, int q_stride,
                        int table_stride, int kv_heads, int group, int teams, int window, float factor,
                        float cap) {
  using namespace paged_decode;
  SharedMemory& memory = *reinterpret_cast<SharedMemory*>(shared_quads);
  awqkit::let_successor_start();
  const WarpShare mine = load_share<WarpShare>(share_of_warp(shares));
  const BlockShare share = load_share<BlockShare>(share_of(shares));
  const Problem problem{q,
                        out,
                        workspace,
                        arrivals,
                        reinterpret_cast<const BlockShare*>(share_of(shares)),
                        PageTable{page_table, table_stride},
                        Pages{keys, values, params, kv_heads},
                        HeadLayout{group, teams},
                        Line{lengths, kv_heads * teams, window},
                        ScoreScale{factor, cap},
                        q_stride};
  // A launch ends after its predecessor, by what waits in it. Blocks without work make room for the
  // successor's at once.
  if (share.run.begin < share.run.end) {
    attend(problem, share, mine, memory);
  } else if (blockIdx.x == 0) {
    awqkit::wait_for_predecessor();
  }
  if (share.idle_rows) clear_idle_rows(problem, rows);
}
