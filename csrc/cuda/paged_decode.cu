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
// a warp's ring).
// Launch: any grid, best a block for each SM. block = 32 · PD_WARPS.
//   dynamic shared memory = 8192 + PD_WARPS · PD_SLOTS · slot,
//   where slot = 16 · PD_TOKEN_TILES · (the wider row of keys and values + 4 for codes' parameters)
//   workspace: (2 + PD_WARPS) · grid · record bytes,
//   where record = 512 · PD_HEAD_TILES · (1 + PD_HEAD_DIM / 16)
//   arrivals: grid integers, zero before the first launch.
// Alignment: q rows 8 bytes, all other pointers 16.
#include "paged_decode_walk.cuh"

namespace paged_decode {

struct SharedMemory {
  ScheduleMemory schedule;
  Pieces pieces;
  // Of the segment that began in an earlier block, and of the one that began here.
  SharedSegment shared[2];
  bool joined[2];    // by the block's warps
  bool complete[2];  // all of its parts lie in the workspace
};

// What all warps of a block know, and then the ring of every warp.
constexpr int kFixedBytes = 8 * 1024;
static_assert(sizeof(SharedMemory) <= kFixedBytes);

// What this thread knows to be written of a shared segment is all that the block has of it.
__device__ __forceinline__ void arrive(const Problem& problem, SharedMemory& memory, bool begins) {
  const Sharing sharing = memory.shared[begins].sharing;
  int* arrivals = problem.arrivals + sharing.first_block;
  if (add_in_order(arrivals, 1) != sharing.parts - 1) return;
  *arrivals = 0;
  memory.complete[begins] = true;
}

// What a block has of a segment goes to the output, or to the workspace if other blocks have more.
// Here: what one warp has of it, if that is all.
struct Settle {
  const Problem& problem;
  const Schedule& schedule;
  SharedMemory& memory;

  __device__ __forceinline__ void operator()(const Softmax& softmax, const Segment& segment) const {
    const int lane = threadIdx.x % 32;
    const HeadGroup group = problem.heads.at(segment.head);
    const Run run = schedule.run();
    if (run.holds(segment)) {
      store_output(problem.out_of(segment.row, group), softmax, group.count, lane);
      return;
    }
    const bool begins = segment.begin >= run.begin;
    store_record(problem.record(blockIdx.x, begins, lane), softmax, group.count, lane);
    __syncwarp();
    if (lane == 0) arrive(problem, memory, begins);
  }
};

// Pieces of a segment, from the warp that opens it on.
struct PieceRecords {
  const Pieces& pieces;
  int first;
  u32 others;  // bits of the warps that continue it
  int lane;

  __device__ __forceinline__ int count() const { return 1 + __popc(others); }

  __device__ __forceinline__ const float4* next(int i) {
    if (i == 0) return pieces.openings[first] + lane;
    const int warp = __ffs(others) - 1;
    others &= others - 1;
    return pieces.continuations[warp] + lane;
  }

  __device__ __forceinline__ float4 load(const float4* from) const { return *from; }
};

// Parts of a segment, from L2, where other blocks have written them.
struct PartRecords {
  const Problem& problem;
  Sharing sharing;
  int lane;

  __device__ __forceinline__ int count() const { return sharing.parts; }

  __device__ __forceinline__ const float4* next(int i) const {
    return problem.record(sharing.first_block + i, i == 0, lane);
  }

  __device__ __forceinline__ float4 load(const float4* from) const { return __ldcg(from); }
};

// Calls use(total, n, tile) with every tile of the output, each of them by one of the block's warps.
template <int kTogether, class Records, class Use>
__device__ __forceinline__ void add_all_tiles(const Records& records, int count, const Use& use) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll 1
  for (int i = warp; i < kHeadTiles * kDimTiles; i += kWarps) {
    const int n = i / kDimTiles, tile = i % kDimTiles;
    if (has_heads(n, count, lane)) use(add_tiles<kTogether>(records, n, tile), n, tile);
  }
}

// The whole block: what its warps have left of the segment that warp `first` opens.
__device__ __forceinline__ void join_pieces(const Problem& problem, SharedMemory& memory,
                                            const Run& run, int first, u32 others) {
  const int lane = threadIdx.x % 32;
  const Segment segment = memory.pieces.opened[first];
  const HeadGroup group = problem.heads.at(segment.head);
  const bool whole = run.holds(segment), begins = segment.begin >= run.begin;
  u16* out = problem.out_of(segment.row, group);
  float4* record = problem.record(blockIdx.x, begins, lane);
  if (!whole && threadIdx.x == 0) memory.joined[begins] = true;
  add_all_tiles<8>(PieceRecords{memory.pieces, first, others, lane}, group.count,
                   [&](const TileSum& total, int n, int tile) {
                     if (whole)
                       store_output_tile(out, total, n, tile, group.count, lane);
                     else
                       store_record_tile(record, total, n, tile);
                   });
}

// The whole block: a piece that continues another belongs to the last one opened before it.
__device__ __forceinline__ void join_all_pieces(const Problem& problem, SharedMemory& memory,
                                                const Run& run) {
  const int lane = threadIdx.x % 32;
  const bool exists = lane < kWarps;
  const u32 continuing = __ballot_sync(kAll, exists && memory.pieces.continuations[lane] != nullptr);
  u32 opening = __ballot_sync(kAll, exists && memory.pieces.openings[lane] != nullptr);
#pragma unroll 1
  while (opening != 0) {
    const int first = __ffs(opening) - 1;
    opening &= opening - 1;
    const u32 up_to_next = opening ^ (opening - 1);  // all if there is none
    join_pieces(problem, memory, run, first, continuing & up_to_next & (~1u << first));
  }
}

// The whole block.
__device__ __forceinline__ void merge_parts(const Problem& problem, const SharedSegment& segment) {
  const int lane = threadIdx.x % 32;
  const HeadGroup group = problem.heads.at(segment.head);
  u16* out = problem.out_of(segment.row, group);
  add_all_tiles<8>(PartRecords{problem, segment.sharing, lane}, group.count,
                   [&](const TileSum& total, int n, int tile) {
                     store_output_tile(out, total, n, tile, group.count, lane);
                   });
}

__device__ __forceinline__ void attend(const Problem& problem, Schedule& schedule,
                                       SharedMemory& memory) {
  const u32 ring = kFixedBytes + threadIdx.x / 32 * (kSlots * kSlotBytes);
  {
    Walk walk(problem, schedule, memory.pieces, memory.shared, ring);
    walk.go(schedule, Settle{problem, schedule, memory});
  }
  __syncthreads();
  join_all_pieces(problem, memory, schedule.run());
  if (memory.shared[0].sharing.parts + memory.shared[1].sharing.parts == 0) return;
  __syncthreads();
  if (threadIdx.x < 2 && memory.joined[threadIdx.x]) arrive(problem, memory, threadIdx.x);
  __syncthreads();
#pragma unroll 1
  for (int i = 0; i < 2; ++i)
    if (memory.complete[i]) merge_parts(problem, memory.shared[i]);
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

extern "C" __global__ void __launch_bounds__(paged_decode::kThreads, 1)
    paged_decode_kernel(const unsigned short* q, const unsigned char* keys,
                        const unsigned char* values, const unsigned int* params,
                        const int* page_table, const int* lengths, unsigned short* out,
                        float4* workspace, int* arrivals, int rows, int q_stride, int table_stride,
                        int kv_heads, int group, int teams, int window, float factor, float cap,
                        int even_blocks) {
  using namespace paged_decode;
  SharedMemory& memory = *reinterpret_cast<SharedMemory*>(shared_quads);
  awqkit::let_successor_start();
  if (threadIdx.x < 2) {
    memory.shared[threadIdx.x].sharing.parts = 0;
    memory.joined[threadIdx.x] = memory.complete[threadIdx.x] = false;
  }
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
  Schedule schedule(memory.schedule, lengths, rows, kv_heads * teams, even_blocks, window);
  // A launch ends after its predecessor, by what waits in it. Blocks without work make room for the
  // successor's at once.
  if (schedule.has_work())
    attend(problem, schedule, memory);
  else if (blockIdx.x == 0)
    awqkit::wait_for_predecessor();
  clear_idle_rows(problem, schedule, rows);
}
