// A warp's walk along its part of the line of units, segment by segment.
//
// A piece is what one warp sees of a segment. Pieces of a segment that several warps of a block share
// are left as records: in the warp's ring when it has no more to read, else in the workspace, for only a
// warp's first piece can continue another one's.
#pragma once

#include "paged_decode_merge.cuh"
#include "paged_decode_line.cuh"
#include "paged_decode_step.cuh"

namespace paged_decode {

// The arguments of the launch.
struct Problem {
  const u16* q;           // [rows, kv_heads · group, kHeadDim], rows q_stride apart
  u16* out;               // [rows, kv_heads · group, kHeadDim]
  float4* workspace;      // two records a block, of its first segment and of its last; and, behind
                          // those of all blocks, one of each of its warps
  int* arrivals;          // a block: parts of the segment that begins there; zero between launches
  const BlockShare* share;
  PageTable page_table;
  Pages pages;
  HeadLayout heads;
  Line line;
  ScoreScale scale;
  int q_stride;

  __device__ __forceinline__ u16* out_of(int row, const HeadGroup& group) const {
    return out + (static_cast<size_t>(row) * pages.kv_heads * heads.group + group.first) * kHeadDim;
  }

  __device__ __forceinline__ float4* record(int block, bool begins, int lane) const {
    return workspace + static_cast<size_t>(2 * block + begins) * kRecordQuads * 32 + lane;
  }

  __device__ __forceinline__ float4* record_of_warp(int warp) const {
    const int at = 2 * gridDim.x + blockIdx.x * kWarps + warp;
    return workspace + static_cast<size_t>(at) * kRecordQuads * 32;
  }
};

// What a warp knows of the page table: some entries of a row, one in each lane. At first those that its
// share names, with which its ring is filled; the next ones of the row are on their way meanwhile.
class PageIds {
 public:
  __device__ __forceinline__ PageIds(const PageTable& table, const WarpShare& share, int lane)
      : table_(table), lane_(lane), row_(share.first.row),
        base_(share.first.page_of(share.part.begin)), known_(WarpShare::kPages) {
    id_ = share.pages[0];
#pragma unroll
    for (int i = 1; i < WarpShare::kPages; ++i)
      if (lane == i) id_ = share.pages[i];
    next_ = table_.page(share.first, base_ + WarpShare::kPages + lane);
  }

  __device__ __forceinline__ int find(const Segment& segment, int page) {
    if (segment.row != row_ || page < base_ || page >= base_ + known_) {
      const bool is_next = known_ < 32 && segment.row == row_ && page == base_ + known_;
      id_ = is_next ? next_ : table_.page(segment, page + lane_);
      row_ = segment.row, base_ = page, known_ = 32;
    }
    return __shfl_sync(kAll, id_, page - base_);
  }

 private:
  const PageTable& table_;
  int lane_, row_, base_, known_, id_;
  int next_;  // of the pages behind those that are known, until it becomes id_
};

// What the warps of a block have left of segments that several of them share, as records: of the
// segment that a warp opens in its ring, of the one that it continues there or, spilled, in the
// workspace.
//
// And whether a warp was the last one to arrive at a segment of several blocks, which it then merges.
struct Pieces {
  static constexpr int kOpens = 1, kContinues = 2, kSpilled = 4;
  static constexpr int kMergesOpened = 8, kMergesContinued = 16;
  Segment opened[kWarps];  // that begin in this warp, as far as this block goes, and go on in the next
  int left[kWarps];
};

// Where a warp's ring lies in shared memory.
__device__ __forceinline__ constexpr u32 ring_of(int warp) {
  return kFixedBytes + warp * (kSlots * kSlotBytes);
}

// Keeps a warp's ring full, with what its part of the line comes to next.
class Feed {
 public:
  // share: not empty. source: of its first unit.
  __device__ __forceinline__ Feed(const Problem& problem, const WarpShare& share,
                                  const StepSource& source, int lane)
      : problem_(problem), base_(shared_address(shared_quads)), unit_(share.part.begin),
        end_(share.part.end), lane_(lane), segment_(share.first),
        kv_head_(problem.heads.kv_head(share.first.head)), source_(source),
        ids_(problem.page_table, share, lane) {}

  // Whether the next copy is one of the row's newest token, the only one that was not stored long ago.
  __device__ __forceinline__ bool meets_newest() const {
    return unit_ < end_ && unit_ + 1 == segment_.end;
  }

  // copied: whether that was done already.
  __device__ __forceinline__ void send(u32 slot, bool copied) {
    if (unit_ < end_) {
      if (!copied) source_.copy_to(base_ + slot, lane_);
      if (++unit_ < end_) advance();
    }
    commit_copies();
  }

 private:
  __device__ __forceinline__ void advance() {
    if (unit_ == segment_.end)
      enter(problem_.line.after(segment_));
    else if (segment_.tokens_before(unit_) % kPageTokens == 0)
      find_place();
    else
      source_.point_to_next();
  }

  __device__ __forceinline__ void enter(const Segment& segment) {
    segment_ = segment;
    kv_head_ = problem_.heads.kv_head(segment.head);
    find_place();
  }

  __device__ __forceinline__ void find_place() {
    const int token = segment_.tokens_before(unit_);
    const int page = ids_.find(segment_, token / kPageTokens);
    source_.point_to(problem_.pages,
                     place_of(problem_.pages.kv_heads, page, kv_head_, token % kPageTokens), lane_);
  }

  const Problem& problem_;
  u32 base_;
  int unit_, end_, lane_;
  Segment segment_;
  int kv_head_;
  StepSource source_;
  PageIds ids_;
};

class Walk {
 public:
  // run: of the block.
  __device__ __forceinline__ Walk(const Problem& problem, const Run& run, Pieces& pieces)
      : problem_(problem), run_(run), pieces_(pieces), warp_(__shfl_sync(kAll, threadIdx.x / 32, 0)),
        lane_(threadIdx.x % 32) {
    if (lane_ == 0) pieces.left[warp_] = 0;
  }

  // Waits for the predecessor when the ring is filled with what was there before it.
  // settle(softmax, segment) is called with all that the block has of a segment, if it is the warp's.
  template <class Settle>
  __device__ __forceinline__ void go(const WarpShare& share, const Settle& settle) {
    int unit = share.part.begin;
    const int end = share.part.end;
    if (unit == end) {
      // As if it had a piece of no tokens: who joins what lies in rings asks for no more.
      Joined().store(shared_quads + ring_of(warp_) / 16 + lane_, 8 * kHeadTiles, lane_);
      return awqkit::wait_for_predecessor();
    }
    Ring ring(ring_of(warp_));
    // Before all else: what memory has to bring first.
    StepSource source;
    source.point_to(problem_.pages, share.place, lane_);
    const bool copied = unit + 1 < share.first.end;
    if (copied) source.copy_to(shared_address(shared_quads) + ring_of(warp_), lane_);
    Feed feed(problem_, share, source, lane_);
    fill(ring, feed, copied);
    segment_ = share.first;
    const LanePlace place(lane_);
    while (true) {
      const int begin = unit, piece_end = min(segment_.end, end);
      const Queries queries = begin_piece();
      for (; unit < piece_end; ++unit) attend(ring, feed, queries, place, visible_at(unit));
      end_piece(begin, unit, unit == end, settle);
      if (unit == end) return;
      segment_ = problem_.line.after(segment_);
    }
  }

 private:
  // First with what was stored long ago; the rest when the predecessor has ended. copied: whether that
  // has begun with the first slot.
  __device__ __forceinline__ void fill(Ring& ring, Feed& feed, bool copied) {
    int slot = 0;
#pragma unroll 1
    for (int waited = 0; waited < 2; ++waited) {
#pragma unroll 1
      for (; slot < kSlots && (waited || !feed.meets_newest()); ++slot) {
        feed.send(ring.pass(), copied);
        copied = false;
      }
      if (!waited) awqkit::wait_for_predecessor();
    }
  }

  // A slot that is read is filled at once with what comes kSlots later.
  __device__ __forceinline__ void attend(Ring& ring, Feed& feed, const Queries& queries,
                                         const LanePlace& place, const Visible& visible) {
    Step step;
    step.read(queries, ring.oldest(), place, lane_);
    feed.send(ring.pass(), false);
    step.score(softmax_, queries, problem_.scale, visible, lane_);
    step.attend(softmax_, place);
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
  __device__ __forceinline__ void end_piece(int begin, int end, bool last, const Settle& settle) {
    const bool continues = begin != max(segment_.begin, run_.begin);
    softmax_.gather();
    if (!continues && end == min(segment_.end, run_.end)) return settle(softmax_, segment_);
    float4* record = last ? shared_quads + ring_of(warp_) / 16 : problem_.record_of_warp(warp_);
    Joined(softmax_).store(record + lane_, problem_.heads.at(segment_.head).count, lane_);
    if (lane_ != 0) return;
    if (continues) {
      pieces_.left[warp_] |= Pieces::kContinues | (last ? 0 : Pieces::kSpilled);
    } else {
      pieces_.left[warp_] |= Pieces::kOpens;
      pieces_.opened[warp_] = segment_;
    }
  }

  const Problem& problem_;
  Run run_;
  Pieces& pieces_;
  int warp_, lane_;
  Segment segment_;
  Softmax softmax_;
};

static_assert(kSlots * kSlotBytes >= kRecordFloats * 4, "a warp leaves a record in its ring");

}  // namespace paged_decode
