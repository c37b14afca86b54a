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
// of query heads), PD_TOKEN_TILES (m16 tiles of tokens in a step), PD_WARPS (of a block), PD_BLOCKS
// (wanted blocks of an SM, for registers).
// Launch: any grid, best PD_BLOCKS an SM. block = 32 · PD_WARPS.
//   dynamic shared memory = 7168 + PD_WARPS · record,
//   where record = 512 · PD_HEAD_TILES · (1 + PD_HEAD_DIM / 16)
//   workspace: 2 · grid · record bytes. arrivals: grid integers, zero before the first launch.
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
  Complete complete[2];  // of the segment that began in an earlier block, of the one that began here
};

// What a block has of a segment goes to the output, or to the workspace if other blocks have more.
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
    const bool begins = block == sharing.first_block;
    store_record(problem.record(block, begins, lane), softmax, group.count, lane);
    __syncwarp();
    if (lane != 0) return;
    int* arrivals = problem.arrivals + sharing.first_block;
    if (add_in_order(arrivals, 1) != sharing.parts - 1) return;
    *arrivals = 0;
    memory.complete[begins] = {sharing.parts, sharing.first_block, segment.row, segment.head};
  }
};

// Every kWarps-th part of a segment, from L2, where other blocks have written them.
struct PartRecords {
  const Problem& problem;
  int first_block;
  int first, end, lane;
  static constexpr int stride = kWarps;

  __device__ __forceinline__ bool holds(int) const { return true; }

  __device__ __forceinline__ float4 load(int part, int quad) const {
    return __ldcg(problem.record(first_block + part, part == 0, lane) + quad);
  }
};

// The whole block: every warp adds up the parts of its turn, the first warp what they have.
__device__ __forceinline__ void merge_parts(const Problem& problem, const Complete& complete,
                                            float4* slots) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int count = problem.heads.at(complete.head).count;
  Softmax softmax;
  softmax.reset();
  add_far_records(softmax, PartRecords{problem, complete.first_block, warp, complete.parts, lane},
                  count, lane);
  const int sharers = min(kWarps, complete.parts);
  if (warp > 0 && warp < sharers)
    store_record(slots + warp * kRecordQuads * 32 + lane, softmax, count, lane);
  __syncthreads();
  if (warp == 0) {
    add_records(softmax, SlotRecords{slots + lane, Run{0, kWarps}, 1, sharers}, count, lane);
    store_output(problem.out_of(complete.row, problem.heads.at(complete.head)), softmax, count, lane);
  }
  __syncthreads();
}

__device__ __forceinline__ void attend(const Problem& problem, const Schedule& schedule,
                                       SharedMemory& memory, float4* slots) {
  const Settle settle{problem, schedule, memory};
  {
    Walk walk(problem, schedule, slots);
    walk.go(settle);
    __syncthreads();
    walk.join(settle);
  }
  __syncthreads();
#pragma unroll 1
  for (int i = 0; i < 2; ++i) {
    const Complete complete = memory.complete[i];
    if (complete.parts > 0) merge_parts(problem, complete, slots);
  }
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

// What the schedule keeps, and then a record of every warp.
constexpr int kScheduleBytes = 7 * 1024;
static_assert(sizeof(SharedMemory) <= kScheduleBytes);

extern __shared__ float4 shared_quads[];

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
    attend(problem, schedule, memory, shared_quads + kScheduleBytes / 16);
  else if (blockIdx.x == 0)
    awqkit::wait_for_predecessor();
  clear_idle_rows(problem, schedule, rows);
}
