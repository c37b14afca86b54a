// Attention of one new token a row over its paged keys and values (decode):
//   out = softmax(scale · q · Kᵀ) · V,  q and out [rows, kv_heads · group, kHeadDim] BF16.
// sm_80 and up. Pages: paged_decode_format.cuh; how the work is shared: paged_decode_schedule.cuh.
//
// lengths [rows] counts the keys that a row sees, its own included; rows of length 0 get zeros. Of
// page_table [rows, ...] only the pages that hold visible keys are read. window: a row sees its last
// `window` keys; 0: all. factor, cap: ScoreScale. even_blocks: how many blocks of the grid take part
// where rows are equally long and give all of them work.
//
// Programmatic launch: lengths, page_table and all keys and values but those of each row's newest token
// are read while predecessors still run. So a launch without overlap must lie between whatever writes
// them and this one (docs/kernels.md).
//
// All query heads of a key-value head are computed together (in teams, where they are more than the
// tensor cores' tiles here hold). A segment that several blocks share is merged by the block that is
// done last, always in the same order, so that the same inputs give the same bits.
//
// Macros: PD_HEAD_DIM, PD_KEY_BITS and PD_VALUE_BITS (16: BF16; 8, 4: codes), PD_HEAD_TILES (n8 tiles
// of query heads), PD_TOKEN_TILES (m16 tiles of tokens in a step), PD_WARPS (of a block), PD_SLOTS (of
// a warp's ring), PD_BLOCKS (blocks that an SM has room for, for registers).
// Launch: any grid, block = 32 · PD_WARPS. Best is a block for each SM, and room for one of the next
// launch, which then fills its ring while this one runs.
//   dynamic shared memory = 6144 + PD_WARPS · PD_SLOTS · slot,
//   where slot = 16 · PD_TOKEN_TILES · (the wider row of keys and values + 4 for codes' parameters)
//   workspace: (2 + PD_WARPS) · grid · record bytes,
//   where record = 512 · PD_HEAD_TILES · (1 + PD_HEAD_DIM / 16)
//   arrivals: grid integers, zero before the first launch.
// Alignment: q rows 8 bytes, all other pointers 16.
#include "paged_decode_walk.cuh"

namespace paged_decode {

// A segment all of whose parts lie in the workspace; parts 0: none.
struct Complete {
  int parts;
  int first_block;
  int row, head;
};

struct SharedMemory {
  ScheduleMemory schedule;
  Pieces pieces;
  Complete complete[2];  // of the segment that began in an earlier block, of the one that began here
};

// What all warps of a block know, and then the ring of every warp.
constexpr int kFixedBytes = 6 * 1024;
static_assert(sizeof(SharedMemory) <= kFixedBytes);

// What this thread knows to be written of a part of a segment is all that the block has of it.
__device__ __forceinline__ void arrive(const Problem& problem, SharedMemory& memory,
                                       const Segment& segment, const Sharing& sharing) {
  int* arrivals = problem.arrivals + sharing.first_block;
  if (add_in_order(arrivals, 1) != sharing.parts - 1) return;
  *arrivals = 0;
  memory.complete[sharing.first_block == static_cast<int>(blockIdx.x)] = {
      sharing.parts, sharing.first_block, segment.row, segment.head};
}

// What a block has of a segment goes to the output, or to the workspace if other blocks have more.
// Here: what one warp has of it, if that is all.
struct Settle {
  const Problem& problem;
  const Schedule& schedule;
  SharedMemory& memory;

  __device__ __forceinline__ void operator()(const Softmax& softmax, const Segment& segment) const {
    const int lane = threadIdx.x % 32, block = blockIdx.x;
    const HeadGroup group = problem.heads.at(segment.head);
    const Sharing sharing = schedule.sharing(segment);
    if (sharing.parts == 1) {
      store_output(problem.out_of(segment.row, group), softmax, group.count, lane);
      return;
    }
    store_record(problem.record(block, block == sharing.first_block, lane), softmax, group.count, lane);
    __syncwarp();
    if (lane == 0) arrive(problem, memory, segment, sharing);
  }
};

// Pieces of a segment, from the warp that opens it on.
struct PieceRecords {
  const Pieces& pieces;
  int first, count, lane;

  __device__ __forceinline__ const float4* find(int i) const {
    const float4* record = i == 0 ? pieces.openings[first] : pieces.continuations[first + i];
    return record == nullptr ? nullptr : record + lane;
  }

  __device__ __forceinline__ float4 load(const float4* from) const { return *from; }
};

// Parts of a segment, from L2, where other blocks have written them.
struct PartRecords {
  const Problem& problem;
  int first_block, count, lane;

  __device__ __forceinline__ const float4* find(int i) const {
    return problem.record(first_block + i, i == 0, lane);
  }

  __device__ __forceinline__ float4 load(const float4* from) const { return __ldcg(from); }
};

// Calls use(total, n, tile) with every tile of the output, each of them by one of the block's warps.
template <class Records, class Use>
__device__ __forceinline__ void add_all_tiles(const Records& records, int count, const Use& use) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll 1
  for (int i = warp; i < kHeadTiles * kDimTiles; i += kWarps) {
    const int n = i / kDimTiles, tile = i % kDimTiles;
    if (has_heads(n, count, lane)) use(add_tiles(records, n, tile), n, tile);
  }
}

// The whole block: all that its warps have left of the segment that warp `first` opens.
__device__ __forceinline__ void join_pieces(const Problem& problem, const Schedule& schedule,
                                            const Pieces& pieces, int first) {
  const int lane = threadIdx.x % 32, block = blockIdx.x;
  const Segment segment = pieces.opened[first];
  const Run run = schedule.run();
  int last = first + 1;
  while (last < kWarps && run.part(last) < min(segment.end, run.end)) ++last;
  const HeadGroup group = problem.heads.at(segment.head);
  const Sharing sharing = schedule.sharing(segment);
  u16* out = problem.out_of(segment.row, group);
  float4* record = problem.record(block, block == sharing.first_block, lane);
  add_all_tiles(PieceRecords{pieces, first, last - first, lane}, group.count,
                [&](const TileSum& total, int n, int tile) {
                  if (sharing.parts == 1)
                    store_output_tile(out, total, n, tile, group.count, lane);
                  else
                    store_record_tile(record, total, n, tile);
                });
}

// The whole block.
__device__ __forceinline__ void merge_parts(const Problem& problem, const Complete& complete) {
  const int lane = threadIdx.x % 32;
  const HeadGroup group = problem.heads.at(complete.head);
  u16* out = problem.out_of(complete.row, group);
  add_all_tiles(PartRecords{problem, complete.first_block, complete.parts, lane}, group.count,
                [&](const TileSum& total, int n, int tile) {
                  store_output_tile(out, total, n, tile, group.count, lane);
                });
}

// One thread, when the whole block has written what it has of segments that its warps share.
__device__ __forceinline__ void arrive_with_joined(const Problem& problem, const Schedule& schedule,
                                                   SharedMemory& memory) {
#pragma unroll 1
  for (int warp = 0; warp < kWarps; ++warp) {
    if (memory.pieces.openings[warp] == nullptr) continue;
    const Segment segment = memory.pieces.opened[warp];
    const Sharing sharing = schedule.sharing(segment);
    if (sharing.parts > 1) arrive(problem, memory, segment, sharing);
  }
}

__device__ __forceinline__ void attend(const Problem& problem, const Schedule& schedule,
                                       SharedMemory& memory) {
  const u32 ring = kFixedBytes + threadIdx.x / 32 * (kSlots * kSlotBytes);
  {
    Walk walk(problem, schedule, memory.pieces, ring);
    walk.go(Settle{problem, schedule, memory});
  }
  __syncthreads();
#pragma unroll 1
  for (int warp = 0; warp < kWarps; ++warp)
    if (memory.pieces.openings[warp] != nullptr) join_pieces(problem, schedule, memory.pieces, warp);
  __syncthreads();
  if (threadIdx.x == 0) arrive_with_joined(problem, schedule, memory);
  __syncthreads();
#pragma unroll 1
  for (int i = 0; i < 2; ++i)
    if (memory.complete[i].parts > 0) merge_parts(problem, memory.complete[i]);
}

__device__ __forceinline__ void clear_idle_rows(const Problem& problem, const Schedule& schedule,
                                                int rows) {
  const int quads = problem.pages.kv_heads * problem.heads.group * kHeadDim / 8;
  for (int row = blockIdx.x; row < rows; row += gridDim.x) {
    if (schedule.length(row) > 0) continue;
    awqkit::wait_for_predecessor();
    uint4* out = reinterpret_cast<uint4*>(problem.out) + static_cast<size_t>(row) * quads;
    for (int i = threadIdx.x; i < quads; i += kThreads) out[i] = make_uint4(0, 0, 0, 0);
  }
}

}  // namespace paged_decode

extern "C" __global__ void __launch_bounds__(paged_decode::kThreads, PD_BLOCKS)
    paged_decode_kernel(const unsigned short* q, const unsigned char* keys,
                        const unsigned char* values, const unsigned int* params,
                        const int* page_table, const int* lengths, unsigned short* out,
                        float4* workspace, int* arrivals, int rows, int q_stride, int table_stride,
                        int kv_heads, int group, int teams, int window, float factor, float cap,
                        int even_blocks) {
  using namespace paged_decode;
  SharedMemory& memory = *reinterpret_cast<SharedMemory*>(shared_quads);
  awqkit::let_successor_start();
  if (threadIdx.x < 2) memory.complete[threadIdx.x].parts = 0;
  const Problem problem{q,
                        page_table,
                        out,
                        workspace,
                        arrivals,
                        Pages{keys, values, params, kv_heads},
                        HeadLayout{group, teams},
                        ScoreScale{factor, cap},
                        q_stride,
                        table_stride};
  const Schedule schedule(memory.schedule, lengths, rows, kv_heads * teams, even_blocks, window);
  // A launch ends after its predecessor, by what waits in it. Blocks without work make room for the
  // successor's at once.
  if (schedule.has_work())
    attend(problem, schedule, memory);
  else if (blockIdx.x == 0)
    awqkit::wait_for_predecessor();
  clear_idle_rows(problem, schedule, rows);
}
