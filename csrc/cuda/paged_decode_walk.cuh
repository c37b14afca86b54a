// A warp's walk along its part of the line of units, segment by segment.
//
// A piece is what one warp sees of a segment. The first of a block's pieces of a segment stays with
// its warp, which adds those of the warps after it; they leave theirs in shared memory, one each, for
// only a warp's first piece can continue another one's.
#pragma once

#include "paged_decode_merge.cuh"
#include "paged_decode_schedule.cuh"
#include "paged_decode_step.cuh"

namespace paged_decode {

// The arguments of the launch.
struct Problem {
  const u16* q;           // [rows, kv_heads · group, kHeadDim], rows q_stride apart
  const int* page_table;  // [rows, pages], rows table_stride apart
  u16* out;               // [rows, kv_heads · group, kHeadDim]
  float4* workspace;      // two records a block: of its first segment, and of its last
  int* arrivals;          // a block: parts of the segment that begins there; zero between launches
  Pages pages;
  HeadLayout heads;
  ScoreScale scale;
  int q_stride;
  int table_stride;

  __device__ __forceinline__ u16* out_of(int row, const HeadGroup& group) const {
    return out + (static_cast<size_t>(row) * pages.kv_heads * heads.group + group.first) * kHeadDim;
  }

  __device__ __forceinline__ float4* record(int block, bool begins, int lane) const {
    return workspace + static_cast<size_t>(2 * block + begins) * kRecordQuads * 32 + lane;
  }
};

// 32 entries of a row of the page table, one in each lane.
class PageIds {
 public:
  __device__ __forceinline__ int find(const Problem& problem, const Segment& segment, int page,
                                      int lane) {
    if (segment.row != row_ || page < base_ || page >= base_ + 32) {
      row_ = segment.row;
      base_ = page;
      const int last = (segment.length - 1) / kPageTokens;
      id_ = __ldcg(problem.page_table + static_cast<size_t>(row_) * problem.table_stride +
                   min(page + lane, last));
    }
    return __shfl_sync(kAll, id_, page - base_);
  }

 private:
  int row_ = -1, base_ = 0, id_ = 0;
};

// What the warps of a block have left in shared memory.
struct SlotRecords {
  const float4* slots;
  Run run;
  int first, end;
  static constexpr int stride = 1;

  __device__ __forceinline__ bool holds(int warp) const {
    return run.part(warp) < run.part(warp + 1);
  }

  __device__ __forceinline__ float4 load(int warp, int quad) const {
    return slots[warp * kRecordQuads * 32 + quad];
  }
};

class Walk {
 public:
  __device__ __forceinline__ Walk(const Problem& problem, const Schedule& schedule,
                                  float4* slots)
      : problem_(problem), schedule_(schedule), slots_(slots),
        warp_(__shfl_sync(kAll, threadIdx.x / 32, 0)), lane_(threadIdx.x % 32) {}

  // Waits for the predecessor when the first loads are on their way.
  // settle(softmax, segment) is called with all that the block has of a segment.
  template <class Settle>
  __device__ __forceinline__ void go(const Settle& settle) {
    int unit = schedule_.run().part(warp_);
    const int end = schedule_.run().part(warp_ + 1);
    Step step;
    Place place;
    bool early = false;
    if (unit < end) {
      enter(schedule_.find(unit));
      place = place_at(unit);
      // All but the row's newest token was stored long ago.
      early = segment_.tokens_before(unit) + kTokens < segment_.length;
      if (early) load(step, place);
    }
    awqkit::wait_for_predecessor();
    if (unit == end) return;
    if (!early) load(step, place);
    while (true) {
      const int begin = unit, piece_end = min(segment_.end, end);
      const Queries queries = begin_piece();
      for (; unit < piece_end; ++unit) {
        const Visible visible = visible_at(unit);
        const bool more = unit + 1 < end;
        // The next unit may belong to the next segment, which is entered as soon as this one ends.
        if (more) place = unit + 1 < piece_end ? place_after(place, unit + 1) : first_place_after();
        step.multiply_keys(queries);
        if (more) step.load_keys(problem_.pages, place, lane_);
        step.score(queries, problem_.scale, visible, lane_);
        step.attend(softmax_, visible, lane_);
        if (more) step.load_values(problem_.pages, place, lane_);
      }
      end_piece(begin, unit, settle);
      if (unit == end) return;
      enter(schedule_.after(segment_));
    }
  }

  // When all warps have gone: what continues in other warps comes together.
  template <class Settle>
  __device__ __forceinline__ void join(const Settle& settle) {
    if (!open_) return;
    const Run run = schedule_.run();
    const int end = min(segment_.end, run.end);
    int last = warp_ + 1;
    while (last < kWarps && run.part(last) < end) ++last;
    const int count = problem_.heads.at(segment_.head).count;
    add_records(softmax_, SlotRecords{slots_ + lane_, run, warp_ + 1, last}, count, lane_);
    settle(softmax_, segment_);
  }

 private:
  __device__ __forceinline__ void load(Step& step, const Place& place) const {
    step.load_keys(problem_.pages, place, lane_);
    step.load_values(problem_.pages, place, lane_);
  }

  __device__ __forceinline__ void enter(const Segment& segment) {
    segment_ = segment;
    kv_head_ = problem_.heads.at(segment.head).kv_head;
  }

  __device__ __forceinline__ Place place_at(int unit) {
    return place_in(segment_, kv_head_, unit);
  }

  // Of the unit that follows the one at `place` in its segment.
  __device__ __forceinline__ Place place_after(const Place& place, int unit) {
    if (segment_.tokens_before(unit) % kPageTokens == 0) return place_at(unit);
    return {place.row + kTokens, place.params + kTokens};
  }

  __device__ __forceinline__ Place first_place_after() {
    const Segment next = schedule_.after(segment_);
    return place_in(next, problem_.heads.at(next.head).kv_head, next.begin);
  }

  __device__ __forceinline__ Place place_in(const Segment& segment, int kv_head, int unit) {
    const int token = segment.tokens_before(unit);
    const int page = ids_.find(problem_, segment, token / kPageTokens, lane_);
    return place_of(problem_.pages, page, kv_head, token % kPageTokens);
  }

  __device__ __forceinline__ Visible visible_at(int unit) const {
    const int before = segment_.tokens_before(unit);
    const int begin = segment_.first_token - before, end = segment_.length - before;
    return {begin, end, begin <= 0 && end >= kTokens};
  }

  __device__ __forceinline__ Queries begin_piece() {
    softmax_.reset();
    const HeadGroup group = problem_.heads.at(segment_.head);
    const u16* q = problem_.q + static_cast<size_t>(segment_.row) * problem_.q_stride +
                   static_cast<size_t>(group.first) * kHeadDim;
    Queries queries;
    queries.load(q, group.count, lane_);
    return queries;
  }

  template <class Settle>
  __device__ __forceinline__ void end_piece(int begin, int end, const Settle& settle) {
    const Run run = schedule_.run();
    softmax_.gather();
    if (begin != max(segment_.begin, run.begin))
      store_record(slot(warp_), softmax_, problem_.heads.at(segment_.head).count, lane_);
    else if (end == min(segment_.end, run.end))
      settle(softmax_, segment_);
    else
      open_ = true;
  }

  __device__ __forceinline__ float4* slot(int warp) const {
    return slots_ + warp * kRecordQuads * 32 + lane_;
  }

  const Problem& problem_;
  const Schedule& schedule_;
  float4* slots_;
  int warp_, lane_;
  PageIds ids_;
  Segment segment_;
  int kv_head_;
  Softmax softmax_;
  bool open_ = false;
};

}  // namespace paged_decode
