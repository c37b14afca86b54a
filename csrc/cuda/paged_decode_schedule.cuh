// Who attends over what. All (row, head, step of kTokens tokens) units stand in one line, row by
// row and head by head; blocks take equal runs of it, and the warps of a block equal parts of its
// run (stream-K: Osama et al. 2023). Everything follows from `lengths`, on the device, so that a
// captured launch serves other lengths.
//
// A segment is all units of one row and head. A block's boundary that falls within `snap` units of
// a segment's end moves there, since a segment of several blocks costs a merge through memory.
#pragma once

#include "paged_decode_format.cuh"

namespace paged_decode {

constexpr int kStagedRows = 1024;         // rows whose lengths lie in shared memory
constexpr int kLeastUnits = 256 / kTokens;  // of a block, unless segments are shorter

struct Segment {
  int row, head;
  int begin, end;   // on the line
  int first_unit;   // which step of the row is at `begin`: earlier ones are outside the window
  int length;       // keys of the row
  int first_token;  // the first one visible

  __device__ __forceinline__ int tokens_before(int unit) const {
    return (first_unit + unit - begin) * kTokens;
  }
};

// The blocks that share a segment; the first of them is where it begins.
struct Sharing {
  int first_block;
  int parts;
};

// A run of units: that of a block, or the part of it that a warp takes.
struct Run {
  int begin, end;

  // Whether all of a segment is in it.
  __device__ __forceinline__ bool holds(const Segment& segment) const {
    return segment.begin >= begin && segment.end <= end;
  }
};

// What all threads of a block know is kept here, and registers are left to the tensor cores.
struct ScheduleMemory {
  int begins[kThreads];  // the first unit of each chunk of rows
  int warp_sums[kWarps];
  int lengths[kStagedRows];
  int total;   // units
  int blocks;  // that share them
  int snap;
  int boundaries[2];  // of this block's run
  int parts[kWarps + 1];  // and of those of its warps
};

class Schedule {
 public:
  // All threads of the block, once.
  __device__ __forceinline__ Schedule(ScheduleMemory& memory, const int* lengths, int rows,
                                      int heads, int even_blocks, int window)
      : memory_(memory), lengths_(lengths), rows_(rows), heads_(heads), window_(window),
        chunk_((rows + kThreads - 1) / kThreads) {
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
    if (warp < 2 && has_work()) {
      const int unit = boundary(blockIdx.x + warp);
      if (lane == 0) memory.boundaries[warp] = unit;
    }
    __syncthreads();
  }

  __device__ __forceinline__ bool has_work() const {
    return memory_.total > 0 && static_cast<int>(blockIdx.x) < memory_.blocks;
  }

  __device__ __forceinline__ Run run() const {
    return {memory_.boundaries[0], memory_.boundaries[1]};
  }

  // All warps of the block, once: the warp's part of the run, and the segment that it begins with.
  // Equal parts, but that a boundary not far from the end of a segment moves there: it spares a join.
  __device__ __forceinline__ Run take_part(int warp, Segment& first) {
    const Run all = run();
    const int units = all.end - all.begin;
    if (units == 0) return all;
    const int share = (units + kWarps - 1) / kWarps;
    const int most = min(kPageTokens / kTokens, share == 1 ? 0 : (share + 1) / 2);
    int unit = all.begin + units * warp / kWarps;
    first = find(unit);
    const int before = unit - max(first.begin, all.begin), after = min(first.end, all.end) - unit;
    if (min(before, after) <= most) unit += before <= after ? -before : after;
    memory_.parts[warp] = unit;
    if (warp == 0) memory_.parts[kWarps] = all.end;
    __syncthreads();
    const Run part{unit, memory_.parts[warp + 1]};
    if (part.begin < part.end && part.begin == first.end) first = this->after(first);
    return part;
  }

  __device__ __forceinline__ int length(int row) const {
    return row < kStagedRows ? memory_.lengths[row] : __ldcg(lengths_ + row);
  }

  // Follows from the boundaries that stay inside of the segment.
  __device__ __forceinline__ Sharing sharing(const Segment& segment) const {
    const int first = static_cast<int>(
        (static_cast<long long>(segment.begin + memory_.snap + 1) * memory_.blocks + memory_.total -
         1) / memory_.total);
    const int last = static_cast<int>(
        (static_cast<long long>(segment.end - memory_.snap) * memory_.blocks - 1) / memory_.total);
    return {first - 1, max(last - first, -1) + 2};
  }

  // The segment of a unit; the whole warp, for one unit.
  __device__ __forceinline__ Segment find(int unit) const {
    int chunks = 0;
#pragma unroll
    for (int i = 0; i < kThreads; i += 32) chunks += memory_.begins[i + threadIdx.x % 32] <= unit;
    const int chunk = __reduce_add_sync(kAll, chunks) - 1;
    int row = chunk * chunk_, begin = memory_.begins[chunk], units;
    while (begin + (units = row_units(row)) <= unit) begin += units, ++row;
    const int steps = units / heads_, head = (unit - begin) / steps;
    return segment_of(row, head, begin + head * steps, steps);
  }

  // The one after a segment that is not the last.
  __device__ __forceinline__ Segment after(const Segment& segment) const {
    if (segment.head + 1 < heads_) {
      Segment next = segment;
      next.head += 1;
      next.begin = segment.end;
      next.end += segment.end - segment.begin;
      return next;
    }
    int row = segment.row + 1;
    while (row_units(row) == 0) ++row;
    return segment_of(row, 0, segment.end, row_units(row) / heads_);
  }

 private:
  // No more blocks than there are units: else some that share a segment would have nothing of it.
  // Of rows that are equally long (or whose sum is as if they were) the grid knows how many blocks
  // share them evenly: boundaries then lie at the segments' ends, or cut all of them alike.
  __device__ __forceinline__ void share(int total, int even_blocks) {
    const int least = (total + kLeastUnits - 1) / kLeastUnits, grid = gridDim.x;
    int blocks = min(grid, max(min(rows_ * heads_, total), least));
    if (blocks == grid && total == rows_ * row_units(0)) blocks = even_blocks;
    memory_.total = total;
    memory_.blocks = blocks;
    memory_.snap = (total > blocks * kLeastUnits ? 1 : 2) * (kPageTokens / kTokens);
  }

  // Where the run of a block begins.
  __device__ __forceinline__ int boundary(int block) const {
    // total · block / blocks, without 64 bits.
    const u32 blocks = memory_.blocks, each = memory_.total / blocks, rest = memory_.total % blocks;
    const int unit = each * block + rest * block / blocks;
    if (unit == 0 || unit == memory_.total) return unit;
    const Segment segment = find(unit);
    const int before = unit - segment.begin, after = segment.end - unit;
    if (min(before, after) > memory_.snap) return unit;
    return before <= after ? segment.begin : segment.end;
  }

  __device__ __forceinline__ int first_token(int length) const {
    return window_ > 0 ? max(length - window_, 0) : 0;
  }

  __device__ __forceinline__ int units_of(int length) const {
    if (length <= 0) return 0;
    return ((length + kTokens - 1) / kTokens - first_token(length) / kTokens) * heads_;
  }

  __device__ __forceinline__ int row_units(int row) const { return units_of(length(row)); }

  // Of this thread's chunk of rows, whose lengths are staged on the way.
  __device__ __forceinline__ int chunk_units() {
    int units = 0;
    const int begin = threadIdx.x * chunk_;
    for (int row = begin; row < min(begin + chunk_, rows_); ++row) {
      const int length = __ldcg(lengths_ + row);
      if (row < kStagedRows) memory_.lengths[row] = length;
      units += units_of(length);
    }
    return units;
  }

  __device__ __forceinline__ Segment segment_of(int row, int head, int begin, int steps) const {
    const int keys = length(row), first = first_token(keys);
    return {row, head, begin, begin + steps, first / kTokens, keys, first};
  }

  ScheduleMemory& memory_;
  const int* lengths_;
  int rows_;
  int heads_;
  int window_;
  int chunk_;  // rows of a thread
};

}  // namespace paged_decode
