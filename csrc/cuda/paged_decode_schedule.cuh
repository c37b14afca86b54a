// Cuts the line of units into runs of blocks and parts of warps. Everything follows from `lengths`, on
// the device, so that a captured launch serves other lengths.
//
// A block's boundary that falls within `snap` units of a segment's end moves there, since a segment of
// several blocks costs a merge through memory.
#pragma once

#include "paged_decode_line.cuh"

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

// What a warp leaves of its part: nothing (it has none, or a whole segment), the beginning of a segment,
// what continues one, or of several segments perhaps all of it.
enum Piece : int { kNone, kOpens, kContinues, kSeveral };

// What all threads of a block know.
struct ScheduleMemory {
  Piece pieces[kWarps];
  int begins[kThreads];  // the first unit of each chunk of rows
  int warp_sums[kWarps];
  int lengths[kStagedRows];
  int total;   // units
  int blocks;  // that share them
  int snap;
  int boundaries[2];  // of this block's run
  Cut equal[kWarps], ending[kWarps];  // its warps' parts: equal ones, and those that end with segments
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
  }

  // Empty if there is nothing to do.
  __device__ __forceinline__ Run run() const {
    return {memory_.boundaries[0], memory_.boundaries[1]};
  }

  // All warps of the block, once, if its run is not empty: the warp's part of it. Parts are equal, or,
  // where that costs less, end with a segment that ends nearby: it spares a join.
  __device__ __forceinline__ WarpShare take_part(const PageTable& page_table, int kv_heads) {
    const int warp = threadIdx.x / 32, units = run().end - run().begin;
    const int equal = run().begin + units * warp / kWarps;
    Segment first = find(equal);
    const int before = equal - max(first.begin, run().begin);
    const int after = min(first.end, run().end) - equal;
    const bool near = min(before, after) <= kNear;
    memory_.equal[warp] = {equal, before > 0};
    memory_.ending[warp] = {near ? equal + (before <= after ? -before : after) : equal, !near};
    __syncthreads();
    const Cut* cuts = chosen_cuts();
    WarpShare mine{{cuts[warp].unit, end_of(cuts, warp)}, first, {}, {}};
    if (mine.part.begin == mine.part.end) {
      memory_.pieces[warp] = kNone;
      return mine;
    }
    if (mine.part.begin == first.end) mine.first = line_.after(first);
    memory_.pieces[warp] = piece_of(mine);
#pragma unroll
    for (int i = 0; i < WarpShare::kPages; ++i)
      mine.pages[i] = page_table.page(mine.first, mine.first.page_of(mine.part.begin) + i);
    const int kv_head = mine.first.head / (line_.heads / kv_heads);
    mine.place = place_of(kv_heads, mine.pages[0], kv_head,
                          mine.first.tokens_before(mine.part.begin) % kPageTokens);
    return mine;
  }

  // Of BlockShare; when all warps have taken their parts.
  __device__ __forceinline__ void find_joined(u32 (&joined)[2]) const {
    u32 warps[2] = {0, 0};
    int segments = 0;
    bool in_rings = true;
    for (int i = 0; i < kWarps; ++i) {
      const int piece = memory_.pieces[i];
      in_rings &= piece != kSeveral;
      segments += piece == kOpens;
      if (piece == kOpens || piece == kContinues) {
        if (segments == 1) warps[0] |= 1u << i;
        if (segments == 2) warps[1] |= 1u << i;
      }
    }
    const bool few = in_rings && segments <= 2;
    for (int k = 0; k < 2; ++k) joined[k] = few ? warps[k] : 0;
  }

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
    return memory_.total > 0 && static_cast<int>(blockIdx.x) < memory_.blocks;
  }

  __device__ __forceinline__ Piece piece_of(const WarpShare& share) const {
    const int end = min(share.first.end, run().end);
    if (share.part.end > end) return kSeveral;
    if (share.part.begin > max(share.first.begin, run().begin)) return kContinues;
    return share.part.end < end ? kOpens : kNone;
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
    if (blocks == grid && total == rows_ * line_.units_of(length(0))) blocks = even_blocks;
    memory_.total = total;
    memory_.blocks = blocks;
    memory_.snap = (total > blocks * kLeastUnits ? 1 : 2) * (kPageTokens / kTokens);
  }

  // Where the run of a block begins.
  __device__ __forceinline__ int boundary(int block) const {
    const int unit =
        static_cast<int>(static_cast<long long>(memory_.total) * block / memory_.blocks);
    if (unit == 0 || unit == memory_.total) return unit;
    const Segment segment = find(unit);
    const int before = unit - segment.begin, after = segment.end - unit;
    if (min(before, after) > memory_.snap) return unit;
    return before <= after ? segment.begin : segment.end;
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
