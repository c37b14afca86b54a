// Who attends over what. All (row, head, step of kTokens tokens) units stand in one line, row by
// row and head by head; blocks take equal runs of it, and the warps of a block equal parts of its
// run (stream-K: Osama et al. 2023).
//
// A segment is all units of one row and head.
#pragma once

#include "paged_decode_format.cuh"

namespace paged_decode {

struct Segment {
  int row, head;
  int begin, end;   // on the line
  int first_unit;   // which step of the row is at `begin`: earlier ones are outside the window
  int length;       // keys of the row
  int first_token;  // the first one visible

  __device__ __forceinline__ int tokens_before(int unit) const {
    return (first_unit + unit - begin) * kTokens;
  }

  __device__ __forceinline__ int page_of(int unit) const { return tokens_before(unit) / kPageTokens; }
};

// The pages of each row in order, rows `stride` apart.
struct PageTable {
  const int* pages;
  int stride;

  // Of the segment's row, or its last one.
  __device__ __forceinline__ int page(const Segment& segment, int index) const {
    const int last = (segment.length - 1) / kPageTokens;
    return __ldcg(pages + static_cast<size_t>(segment.row) * stride + min(index, last));
  }
};

// A run of units: that of a block, or the part of it that a warp takes.
struct Run {
  int begin, end;

  // Whether all of a segment is in it.
  __device__ __forceinline__ bool holds(const Segment& segment) const {
    return segment.begin >= begin && segment.end <= end;
  }
};

// A segment that several blocks have parts of, from the first one, where it begins, on. parts 0: none.
struct SharedSegment {
  int first_block;
  int parts;
  int row, head;
};

constexpr int kMostRingSegments = 4;  // see BlockShare

// What a block does, found once a step and then read by every launch of it.
struct alignas(16) BlockShare {
  Run run;                  // empty if there is nothing for it to do
  SharedSegment shared[2];  // the segment that began in an earlier block, and the one that begins here
  bool idle_rows;  // whether there are any among those whose number it has modulo the grid's size
  // Segments whose pieces are each left by a group of kWarps / ring_segments warps, by several of them
  // and as the last that they leave, in their rings; 0: pieces lie otherwise.
  unsigned char ring_segments;
  unsigned char openers[kMostRingSegments];  // the first of each group that leaves one
};

// pages: of the row it begins with, from the one with its first token on; the row's last one again
// where it has no more.
struct alignas(16) WarpShare {
  static constexpr int kPages = 3;
  Run part;
  Segment first;  // that it begins with, if its part is not empty
  int pages[kPages];
  Place place;  // of its first token
};

constexpr int kBlockShareBytes = 48, kWarpShareBytes = 64;
static_assert(sizeof(BlockShare) == kBlockShareBytes && sizeof(WarpShare) == kWarpShareBytes);

// One of them, by 16 bytes at a time.
template <class Share>
__device__ __forceinline__ Share load_share(const uint4* from) {
  union {
    uint4 quads[sizeof(Share) / 16];
    Share share;
  } found;
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(Share) / 16); ++i)
    found.quads[i] = load_and_keep(from + i);
  return found.share;
}

// Of the whole batch. lengths [rows]: keys of each row. heads: of a row, or teams of heads.
struct Line {
  const int* lengths;
  int heads;
  int window;  // 0: none

  __device__ __forceinline__ int first_token(int length) const {
    return window > 0 ? max(length - window, 0) : 0;
  }

  // Of all heads of a row.
  __device__ __forceinline__ int units_of(int length) const {
    if (length <= 0) return 0;
    return ((length + kTokens - 1) / kTokens - first_token(length) / kTokens) * heads;
  }

  __device__ __forceinline__ Segment segment_of(int row, int length, int head, int begin) const {
    const int first = first_token(length);
    return {row, head, begin, begin + units_of(length) / heads, first / kTokens, length, first};
  }

  // The one after a segment that is not the last.
  __device__ __forceinline__ Segment after(const Segment& segment) const {
    if (segment.head + 1 < heads) {
      Segment next = segment;
      next.head += 1;
      next.begin = segment.end;
      next.end += segment.end - segment.begin;
      return next;
    }
    int row = segment.row + 1, length;
    while ((length = __ldcg(lengths + row)) <= 0) ++row;
    return segment_of(row, length, 0, segment.end);
  }
};

}  // namespace paged_decode
