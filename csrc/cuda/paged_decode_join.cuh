// What the warps of a block, and then the blocks of a launch, have of one segment comes together.
//
// Pieces of warps are added up by all warps of their block, a tile of the output each, or where there are
// many segments a segment each; the parts of blocks, through L2, by the block that is done last.
#pragma once

#include "paged_decode_groups.cuh"
#include "paged_decode_walk.cuh"

namespace paged_decode {

struct SharedMemory {
  Pieces pieces;
  SharedSegment shared[2];  // as BlockShare has them; known behind the first barrier
  unsigned char ring_segments, openers[kMostRingSegments];  // likewise
  bool joined[2];  // by the block's warps
};

static_assert(sizeof(SharedMemory) <= kFixedBytes);

constexpr int kJoinedTogether = 2;  // segments at most that all warps of a block join one by one

// One lane of a warp. What it knows to be written of a shared segment is all that the block has of it.
__device__ __forceinline__ void arrive(const Problem& problem, Pieces& pieces,
                                       const SharedSegment& shared, bool begins) {
  int* arrivals = problem.arrivals + shared.first_block;
  if (add_in_order(arrivals, 1) != shared.parts - 1) return;
  *arrivals = 0;
  pieces.left[threadIdx.x / 32] |= begins ? Pieces::kMergesOpened : Pieces::kMergesContinued;
}

// What a block has of a segment goes to the output, or to the workspace if other blocks have more.
// Here: what one warp has of it, if that is all.
struct Settle {
  const Problem& problem;
  const Run& run;
  Pieces& pieces;

  __device__ __forceinline__ void operator()(const Softmax& softmax, const Segment& segment) const {
    const int lane = threadIdx.x % 32;
    const HeadGroup group = problem.heads.at(segment.head);
    const Joined joined(softmax);
    if (run.holds(segment))
      return joined.store_output(problem.out_of(segment.row, group), group.count, lane);
    const bool begins = segment.begin >= run.begin;
    joined.store(problem.record(blockIdx.x, begins, lane), group.count, lane);
    __syncwarp();
    if (lane == 0) arrive(problem, pieces, problem.share->shared[begins], begins);
  }
};

// Pieces of a segment, each at the place of the warp that left it.
struct PieceRecords {
  const Problem& problem;
  int first;    // the warp that opens it
  u32 others;   // bits of those that continue it
  u32 spilled;  // of those whose piece that continues one lies in the workspace

  __device__ __forceinline__ int places() const { return kWarps; }

  __device__ __forceinline__ bool has(int warp) const {
    return warp == first || (others >> warp & 1) != 0;
  }

  __device__ __forceinline__ const float4* record(int warp) const {
    return is_spilled(warp) ? problem.record_of_warp(warp) : shared_quads + ring_of(warp) / 16;
  }

  // Of all warps, all under way at once. Where there is none: another one's.
  template <int kGroups>
  __device__ __forceinline__ void load_all(float4 (&found)[kWarps], float4 (&heads)[kGroups], int,
                                           int at, int heads_at, bool needed) const {
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp)
      found[warp] = shared_quads[ring_of(has(warp) ? warp : first) / 16 + at];
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const int warp = 8 * g + threadIdx.x % 32 / 4;
      if (needed && warp < kWarps && has(warp)) heads[g] = record(warp)[heads_at];
    }
    if ((others & spilled) == 0) return;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp)
      if (is_spilled(warp)) found[warp] = record(warp)[at];
  }

 private:
  __device__ __forceinline__ bool is_spilled(int warp) const {
    return ((others & spilled) >> warp & 1) != 0;
  }
};

// Parts of a segment, from L2, where other blocks have written them.
struct PartRecords {
  const Problem& problem;
  SharedSegment segment;

  __device__ __forceinline__ int places() const { return segment.parts; }

  __device__ __forceinline__ bool has(int part) const { return part < segment.parts; }

  __device__ __forceinline__ float4 load(int part, int at) const {
    return __ldcg(problem.record(segment.first_block + part, part == 0, 0) + at);
  }

  template <int kTogether, int kGroups>
  __device__ __forceinline__ void load_all(float4 (&found)[kTogether], float4 (&heads)[kGroups],
                                           int begin, int at, int heads_at, bool needed) const {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const int k = 8 * g + threadIdx.x % 32 / 4;
      if (needed && k < kTogether && has(begin + k)) heads[g] = load(begin + k, heads_at);
    }
#pragma unroll
    for (int k = 0; k < kTogether; ++k) {
      found[k] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      if (needed && has(begin + k)) found[k] = load(begin + k, at);
    }
  }
};

// Calls use(total, n, tile, needed) with every tile of the output, each of them by one of the block's
// warps; needed: whether the lane has heads of it.
template <int kTogether, class Records, class Use>
__device__ __forceinline__ void add_all_tiles(const Records& records, int count, const Use& use) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll 1
  for (int i = warp; i < kHeadTiles * kLaneTiles; i += kWarps) {
    const int n = i / kLaneTiles, tile = i % kLaneTiles;
    const bool needed = has_heads(n, count, lane);
    TileSum total = add_tiles<kTogether>(records, needed, n, tile);
    use(total, n, tile, needed);
  }
}

// Where what a block has of a segment goes: to the output, or, if other blocks have more of it, to its
// record in the workspace.
struct Destination {
  HeadGroup group;
  bool whole, begins;
  u16* out;
  float4* record;  // the lane's first float4

  __device__ __forceinline__ Destination(const Problem& problem, const Run& run,
                                         const Segment& segment, int lane)
      : group(problem.heads.at(segment.head)), whole(run.holds(segment)),
        begins(segment.begin >= run.begin), out(problem.out_of(segment.row, group)),
        record(problem.record(blockIdx.x, begins, lane)) {}

  // A tile of it; needed: whether the lane has heads.
  __device__ __forceinline__ void store(const TileSum& total, int n, int tile, bool needed,
                                        int lane) const {
    if (whole)
      store_output_tile(out, total, n, tile, group.count, lane);
    else if (needed)
      store_record_tile(record, total, n, tile);
  }
};

// The whole block: the pieces of a segment.
__device__ __forceinline__ void join_pieces(const PieceRecords& pieces, const Destination& to) {
  const auto store = [&](const TileSum& total, int n, int tile, bool needed) {
    to.store(total, n, tile, needed, threadIdx.x % 32);
  };
  add_all_tiles<kWarps>(pieces, to.group.count, store);
}

// A warp: likewise.
__device__ __forceinline__ void join_pieces_alone(const PieceRecords& pieces, const Destination& to) {
  const int lane = threadIdx.x % 32, count = to.group.count;
  Joined total;
  u32 left = 1u << pieces.first | pieces.others;
#pragma unroll 1
  while (left != 0) {
    total.add(pieces.record(__ffs(left) - 1) + lane, count, lane);
    left &= left - 1;
  }
  if (to.whole)
    total.store_output(to.out, count, lane);
  else
    total.store(to.record, count, lane);
}

// The whole block: what groups of its warps have left in their rings, each of one segment. Nobody asks
// who has left what, and each lane weighs all records by itself: to do that together takes longer.
template <int kSegments>
__device__ __forceinline__ void join_rings(const Problem& problem, SharedMemory& memory,
                                           const Run& run) {
  static_assert(may_stand_in_groups(kSegments));
  constexpr int kGroup = kWarps / kSegments, kRingQuads = kSlots * kSlotBytes / 16;
  const int lane = threadIdx.x % 32;
#pragma unroll 1
  for (int i = threadIdx.x / 32; i < kSegments * kHeadTiles * kLaneTiles; i += kWarps) {
    const int segment = i % kSegments, part = i / kSegments;
    const int n = part / kLaneTiles, tile = part % kLaneTiles;
    const float4* first = shared_quads + ring_of(segment * kGroup) / 16 + n * (1 + kLaneTiles) * 32;
    float4 heads[kGroup], tiles[kGroup];
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      heads[k] = first[k * kRingQuads + lane % 4];
      tiles[k] = first[k * kRingQuads + (1 + tile) * 32 + lane];
    }
    TileSum total;
    total.reset();
#pragma unroll
    for (int k = 0; k < kGroup; ++k) total.rise(heads[k]);
#pragma unroll
    for (int k = 0; k < kGroup; ++k) total.add(tiles[k], heads[k]);
    const Destination to(problem, run, memory.pieces.opened[memory.openers[segment]], lane);
    if (!to.whole && part == 0 && lane == 0) memory.joined[to.begins] = true;
    to.store(total, n, tile, has_heads(n, to.group.count, lane), lane);
  }
}

// The same for so many segments, kSegments or more.
template <int kSegments>
__device__ __forceinline__ void join_rings_of(const Problem& problem, SharedMemory& memory,
                                              const Run& run, int segments) {
  if constexpr (may_stand_in_groups(kSegments))
    if (segments == kSegments) return join_rings<kSegments>(problem, memory, run);
  if constexpr (kSegments < kMostRingSegments)
    join_rings_of<kSegments + 1>(problem, memory, run, segments);
}

// The whole block: pieces of any segments, some of them in the workspace. One that continues another
// belongs to the last one opened before it.
__device__ __forceinline__ void join_scattered_pieces(const Problem& problem, SharedMemory& memory,
                                                      const Run& run) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int left = lane < kWarps ? memory.pieces.left[lane] : 0;
  const u32 continuing = __ballot_sync(kAll, (left & Pieces::kContinues) != 0);
  const u32 spilled = __ballot_sync(kAll, (left & Pieces::kSpilled) != 0);
  u32 opening = __ballot_sync(kAll, (left & Pieces::kOpens) != 0);
  const bool alone = __popc(opening) > kJoinedTogether;
#pragma unroll 1
  while (opening != 0) {
    const int first = __ffs(opening) - 1;
    opening &= opening - 1;
    const u32 up_to_next = opening ^ (opening - 1);  // all if there is none
    if (alone && first != warp) continue;
    const PieceRecords pieces{problem, first, continuing & up_to_next & (~1u << first), spilled};
    const Destination to(problem, run, memory.pieces.opened[first], lane);
    if (!to.whole && lane == 0 && (alone || warp == 0)) memory.joined[to.begins] = true;
    if (alone) return join_pieces_alone(pieces, to);
    join_pieces(pieces, to);
  }
}

// The whole block.
__device__ __forceinline__ void join_all_pieces(const Problem& problem, SharedMemory& memory,
                                                const Run& run) {
  const int segments = memory.ring_segments;
  if (segments == 0) return join_scattered_pieces(problem, memory, run);
  join_rings_of<1>(problem, memory, run, segments);
}

// The whole block.
__device__ __forceinline__ void merge_parts(const Problem& problem, const SharedSegment& segment) {
  const int lane = threadIdx.x % 32;
  const HeadGroup group = problem.heads.at(segment.head);
  u16* out = problem.out_of(segment.row, group);
  add_all_tiles<16>(PartRecords{problem, segment}, group.count,
                    [&](const TileSum& total, int n, int tile, bool) {
                      store_output_tile(out, total, n, tile, group.count, lane);
                    });
}

}  // namespace paged_decode
