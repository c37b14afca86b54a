// Groups of warps that have a segment each: all that is to be joined of it lies in their rings then.
#pragma once

#include "paged_decode_line.cuh"

namespace paged_decode {

// What the warps of a block leave for others to join.
struct LeftPieces {
  static constexpr int kNone = -1;
  int segment[kWarps];  // where on the line it begins that the warp's part ends in; kNone: an empty part
  bool early[kWarps];   // whether the warp leaves a piece that continues another, and goes on
};

// Whether so many segments are worth it: a warp adds up two tiles of them at most. More warps than twelve
// are there for blocks of many segments, which are hardly cut.
__device__ __forceinline__ constexpr bool may_stand_in_groups(int segments) {
  constexpr int kMostWarps = 12, kTiles = kHeadTiles * kDimTiles / kStreams;
  return kWarps <= kMostWarps && kWarps % segments == 0 &&
         (segments == 1 || segments * kTiles <= 2 * kWarps);
}

// Whether the warps stand in groups that have so many segments (BlockShare).
__device__ __forceinline__ bool stand_in_groups(const LeftPieces& left, int segments,
                                                unsigned char* openers) {
  const int size = kWarps / segments;
  int before = LeftPieces::kNone;
  for (int group = 0; group < segments; ++group) {
    int pieces = 0, segment = LeftPieces::kNone;
    for (int i = group * size; i < (group + 1) * size; ++i) {
      if (left.segment[i] == LeftPieces::kNone) continue;
      if (left.early[i] || (pieces > 0 && left.segment[i] != segment)) return false;
      if (pieces++ == 0) openers[group] = static_cast<unsigned char>(i);
      segment = left.segment[i];
    }
    if (pieces < 2 || segment == before) return false;
    before = segment;
  }
  return true;
}

__device__ __forceinline__ void find_groups(const LeftPieces& left, BlockShare& share) {
  share.ring_segments = 0;
#pragma unroll
  for (int segments = 1; segments <= kMostRingSegments; ++segments) {
    if (!may_stand_in_groups(segments) || !stand_in_groups(left, segments, share.openers)) continue;
    share.ring_segments = static_cast<unsigned char>(segments);
    return;
  }
}

}  // namespace paged_decode
