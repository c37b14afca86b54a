// Cuts the line of units into runs of blocks and parts of warps. Everything follows from `lengths`, on
// the device, so that a captured launch serves other lengths.
//
// A block's boundary that falls within `snap` units of a segment's end moves there, since a segment of
// several blocks costs a merge through memory. Or the cut is a steady one: a block for each segment, so
// that the bits of a row follow from its own keys.
#pragma once

#include "paged_decode_groups.cuh"

namespace paged_decode {

constexpr int kStagedRows = 1024;           // rows whose lengths lie in shared memory
constexpr int kLeastUnits = 256 / kTokens;  // of a block, unless segments are shorter

constexpr int kNear = kPageTokens / kTokens;  // of a segment's end
constexpr int kJoinUnits = 80 / kTokens;      // that a warp walks while a block joins pieces

// Where a warp's part begins, and whether that is inside of a segment.
struct Cut {
  int unit;
  bool inside;
};

// What all threads of a block know.
struct ScheduleMemory {
  int begins[kThreads];  // the first unit of each chunk of rows
  int warp_sums[kWarps];
  int lengths[kStagedRows];
  int total;   // units
  int blocks;  // that share them; 0: each has a segment by itself
  int snap;
  int workers;  // warps of this block that take part
  int boundaries[2];  // of this block's run
  Cut equal[kWarps], ending[kWarps];  // its warps' parts: equal ones, and those that end with segments
  LeftPieces left;
};

class Schedule {
 public:
  // All threads of the block, once.
  __device__ __forceinline__ Schedule(ScheduleMemory& memory, const Line& line, int rows,
                                      int even_blocks)
      : memory_(memory), line_(line), rows_(rows), chunk_((rows + kThreads - 1) / kThreads) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int units = chunk_units();
    int before = units;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const int other = __shfl_up_sync(kAll, before, distance);
      if (lane >= distance) before += other;
    }
    if (lane == 31) memory.warp_sums[warp] = before;
    __syncthreads();
    int total = 0;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) {
      if (i == warp) before += total;
      total += memory.warp_sums[i];
    }
    memory.begins[threadIdx.x] = before - units;
    if (threadIdx.x == 0) share(total, even_blocks);
    __syncthreads();
    if (warp < 2) {
      const int unit = has_work() ? boundary(blockIdx.x + warp) : 0;
      if (lane == 0) memory.boundaries[warp] = unit;
    }
    __syncthreads();
    if (threadIdx.x == 0) memory.workers = workers();
    __syncthreads();
  }

  // Empty if there is nothing to do.
  __device__ __forceinline__ Run run() const {
    return {memory_.boundaries[0], memory_.boundaries[1]};
  }

  // All warps of the block, once, if its run is not empty: the warp's part of it. Parts are equal, or,
  // where that costs less, end with a segment that ends nearby: it spares a join.
  __device__ __forceinline__ WarpShare take_part(const PageTable& page_table, int kv_heads) {
    const int warp = threadIdx.x / 32, units = run().end - run().begin;
    const bool works = warp < memory_.workers;
    const int equal = run().begin + (works ? units * warp / memory_.workers : 0);
    Segment first = find(equal);
    const int before = equal - max(first.begin, run().begin);
    const int after = min(first.end, run().end) - equal;
    const bool near = min(before, after) <= kNear;
    Cut cut = works ? Cut{equal, before > 0} : Cut{run().end, false};
    memory_.equal[warp] = cut;
    if (works && near) cut = {equal + (before <= after ? -before : after), false};
    memory_.ending[warp] = cut;
    __syncthreads();
    const Cut* cuts = chosen_cuts();
    WarpShare mine{{cuts[warp].unit, end_of(cuts, warp)}, first, {}, {}};
    const bool idle = mine.part.begin == mine.part.end;
    if (!idle && mine.part.begin == first.end) mine.first = line_.after(first);
    const bool goes_on = !idle && mine.part.end > mine.first.end;
    const int last = goes_on ? find(mine.part.end - 1).begin : mine.first.begin;
    memory_.left.segment[warp] = idle ? LeftPieces::kNone : last;
    memory_.left.early[warp] = goes_on && cuts[warp].inside;
    if (idle) return mine;
#pragma unroll
    for (int i = 0; i < WarpShare::kPages; ++i)
      mine.pages[i] = page_table.page(mine.first, mine.first.page_of(mine.part.begin) + i);
    const int kv_head = mine.first.head / (line_.heads / kv_heads);
    mine.place = place_of(kv_heads, mine.pages[0], kv_head,
                          mine.first.tokens_before(mine.part.begin) % kPageTokens);
    return mine;
  }

  // When warps have taken their parts.
  __device__ __forceinline__ const LeftPieces& left_pieces() const { return memory_.left; }

  // A warp, if the run is not empty: of the segment that the run begins or ends with, if others have
  // parts of it.
  __device__ __forceinline__ SharedSegment shared(bool begins) const {
    const Segment segment = find(begins ? run().end - 1 : run().begin);
    if (run().holds(segment) || (segment.begin >= run().begin) != begins) return {0, 0, 0, 0};
    return sharing(segment);
  }

  // Whether one of the rows blockIdx.x, blockIdx.x + gridDim.x, … is idle.
  __device__ __forceinline__ bool has_idle_rows() const {
    bool idle = false;
    for (int row = blockIdx.x; row < rows_; row += gridDim.x) idle |= length(row) <= 0;
    return idle;
  }

 private:
  __device__ __forceinline__ bool has_work() const {
    const int blocks = is_steady() ? rows_ * line_.heads : memory_.blocks;
    return memory_.total > 0 && static_cast<int>(blockIdx.x) < blocks;
  }

  __device__ __forceinline__ bool is_steady() const { return memory_.blocks == 0; }

  // Whether rows are equally long, or their sum is as if they were.
  __device__ __forceinline__ bool is_even(int total) const {
    return total == rows_ * line_.units_of(length(0));
  }

  // All, but where the run is equal segments of which fewer warps can have as many each: else some would
  // still read when others are done. A segment of several warps costs a join.
  __device__ __forceinline__ int workers() const {
    const int steps = line_.units_of(length(0)) / line_.heads, units = run().end - run().begin;
    if (units == 0 || is_steady() || !is_even(memory_.total)) return kWarps;
    if (run().begin % steps != 0 || units % steps != 0) return kWarps;
    const int segments = units / steps;
    if (2 * segments <= kWarps) return kWarps;
    const int of_a_warp = (segments + kWarps - 1) / kWarps;
    return segments % of_a_warp == 0 ? segments / of_a_warp : kWarps;
  }

  __device__ __forceinline__ const Cut* chosen_cuts() const {
    return cost_of(memory_.ending) <= cost_of(memory_.equal) ? memory_.ending : memory_.equal;
  }

  __device__ __forceinline__ int end_of(const Cut* cuts, int warp) const {
    return warp + 1 < kWarps ? cuts[warp + 1].unit : run().end;
  }

  // The longest part, and a join if any segment is cut.
  __device__ __forceinline__ int cost_of(const Cut* cuts) const {
    int longest = 0;
    bool joins = false;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) {
      longest = max(longest, end_of(cuts, i) - cuts[i].unit);
      joins |= cuts[i].inside;
    }
    return longest + (joins ? kJoinUnits : 0);
  }

  __device__ __forceinline__ int length(int row) const {
    return row < kStagedRows ? memory_.lengths[row] : __ldcg(line_.lengths + row);
  }

  // Follows from the boundaries that stay inside of the segment.
  __device__ __forceinline__ SharedSegment sharing(const Segment& segment) const {
    const int first = static_cast<int>(
        (static_cast<long long>(segment.begin + memory_.snap + 1) * memory_.blocks + memory_.total -
         1) / memory_.total);
    const int last = static_cast<int>(
        (static_cast<long long>(segment.end - memory_.snap) * memory_.blocks - 1) / memory_.total);
    return {first - 1, max(last - first, -1) + 2, segment.row, segment.head};
  }

  // The segment of a unit; the whole warp, for one unit.
  __device__ __forceinline__ Segment find(int unit) const {
    int chunks = 0;
#pragma unroll
    for (int i = 0; i < kThreads; i += 32) chunks += memory_.begins[i + threadIdx.x % 32] <= unit;
    const int chunk = __reduce_add_sync(kAll, chunks) - 1;
    int row = chunk * chunk_, begin = memory_.begins[chunk], units;
    while (begin + (units = line_.units_of(length(row))) <= unit) begin += units, ++row;
    const int steps = units / line_.heads, head = (unit - begin) / steps;
    return line_.segment_of(row, length(row), head, begin + head * steps);
  }

  // No more blocks than there are units: else some that share a segment would have nothing of it.
  // Of rows that are equally long (or whose sum is as if they were) the grid knows how many blocks
  // share them evenly: boundaries then lie at the segments' ends, or cut all of them alike.
  __device__ __forceinline__ void share(int total, int even_blocks) {
    const int least = (total + kLeastUnits - 1) / kLeastUnits, grid = gridDim.x;
    int blocks = min(grid, max(min(rows_ * line_.heads, total), least));
    if (even_blocks == 0 || (blocks == grid && is_even(total))) blocks = even_blocks;
    memory_.total = total;
    memory_.blocks = blocks;
    memory_.snap = (total > blocks * kLeastUnits ? 1 : 2) * (kPageTokens / kTokens);
  }

  // Where the run of a block begins.
  __device__ __forceinline__ int boundary(int block) const {
    if (is_steady()) return begin_of(block);
    const int unit =
        static_cast<int>(static_cast<long long>(memory_.total) * block / memory_.blocks);
    if (unit == 0 || unit == memory_.total) return unit;
    const Segment segment = find(unit);
    const int before = unit - segment.begin, after = segment.end - unit;
    if (min(before, after) > memory_.snap) return unit;
    return before <= after ? segment.begin : segment.end;
  }

  // Of a segment by its number; those of idle rows are empty.
  __device__ __forceinline__ int begin_of(int number) const {
    const int row = number / line_.heads, chunk = row / chunk_;
    if (row == rows_) return memory_.total;
    int begin = memory_.begins[chunk];
    for (int before = chunk * chunk_; before < row; ++before) begin += line_.units_of(length(before));
    return begin + number % line_.heads * (line_.units_of(length(row)) / line_.heads);
  }

  // Of this thread's chunk of rows, whose lengths are staged on the way.
  __device__ __forceinline__ int chunk_units() {
    int units = 0;
    const int begin = threadIdx.x * chunk_;
    for (int row = begin; row < min(begin + chunk_, rows_); ++row) {
      const int length = __ldcg(line_.lengths + row);
      if (row < kStagedRows) memory_.lengths[row] = length;
      units += line_.units_of(length);
    }
    return units;
  }

  ScheduleMemory& memory_;
  const Line& line_;
  int rows_;
  int chunk_;  // rows of a thread
};

}  // namespace paged_decode
