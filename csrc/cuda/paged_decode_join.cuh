// What the warps of a block, and then the blocks of a launch, have of one segment comes together.
//
// Pieces of warps are added up by all warps of their block, a tile of the output each, or where there are
// many segments a segment each; the parts of blocks, through L2, by the block where the segment ends.
#pragma once

#include "paged_decode_walk.cuh"

namespace paged_decode {

struct SharedMemory {
  Pieces pieces;
  SharedSegment ending;  // as BlockShare has it; known behind the first barrier
};

static_assert(sizeof(SharedMemory) <= kFixedBytes);

constexpr int kJoinedTogether = 2;  // segments at most that all warps of a block join one by one

// What a block has of a segment goes to the output, or to the workspace if other blocks have more.
// Here: what one warp has of it, if that is all.
struct Settle {
  const Problem& problem;
  const Run& run;

  __device__ __forceinline__ void operator()(Softmax& softmax, const Segment& segment) const {
    const int lane = threadIdx.x % 32;
    const HeadGroup group = problem.heads.at(segment.head);
    if (run.holds(segment)) {
      softmax.join_streams();
      store_output(problem.out_of(segment.row, group), softmax, group.count, lane);
      return;
    }
    const bool begins = segment.begin >= run.begin;
    store_record<ToBlocks>(problem.record(blockIdx.x, begins, lane), softmax, group.count, lane);
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

// Parts of a segment, from L2, where other blocks write them.
struct PartRecords {
  const Problem& problem;
  SharedSegment segment;

  __device__ __forceinline__ int places() const { return segment.parts; }

  __device__ __forceinline__ bool has(int part) const { return part < segment.parts; }

  __device__ __forceinline__ float4* record(int part) const {
    return problem.record(segment.first_block + part, part == 0, 0);
  }

  // Until all have come. The blocks ahead, which this one waits for, began before it.
  template <int kTogether, int kGroups>
  __device__ __forceinline__ void load_all(float4 (&found)[kTogether], float4 (&heads)[kGroups],
                                           int begin, int at, int heads_at, bool needed) const {
    bool all_came;
    do {
      uint4 words[kTogether], heads_words[kGroups];
#pragma unroll
      for (int k = 0; k < kTogether; ++k) {
        words[k] = make_uint4(0, 0, 0, 0);
        if (needed && has(begin + k)) words[k] = look(record(begin + k) + at);
      }
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        heads_words[g] = as_words(heads[g]);
        const int k = 8 * g + threadIdx.x % 32 / 4;
        if (needed && k < kTogether && has(begin + k)) heads_words[g] = look(record(begin + k) + heads_at);
      }
      all_came = true;
#pragma unroll
      for (int k = 0; k < kTogether; ++k) all_came &= came(found[k], words[k]);
#pragma unroll
      for (int g = 0; g < kGroups; ++g) all_came &= came(heads[g], heads_words[g]);
    } while (!all_came);
  }
};

// Calls use(total, n, tile, needed) with every tile of the output, each of them by one of the block's
// warps; needed: whether the lane has heads of it.
template <int kTogether, class Records, class Use>
__device__ __forceinline__ void add_all_tiles(const Records& records, int count, const Use& use) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll 1
  for (int i = warp; i < kHeadTiles * kDimTiles; i += kWarps) {
    const int n = i / kDimTiles, tile = i % kDimTiles;
    const bool needed = has_heads(n, count, lane);
    TileSum total = add_tiles<kTogether>(records, needed, n, tile);
    use(total, n, tile, needed);
  }
}

// Where what a block has of a segment goes: to the output, or, if other blocks have more of it, to its
// record in the workspace.
struct Destination {
  HeadGroup group;
  bool whole;
  u16* out;
  float4* record;  // the lane's first float4

  __device__ __forceinline__ Destination(const Problem& problem, const Run& run,
                                         const Segment& segment, int lane)
      : group(problem.heads.at(segment.head)), whole(run.holds(segment)),
        out(problem.out_of(segment.row, group)),
        record(problem.record(blockIdx.x, segment.begin >= run.begin, lane)) {}
};

// The whole block: the pieces of a segment.
__device__ __forceinline__ void join_pieces(const PieceRecords& pieces, const Destination& to) {
  const int lane = threadIdx.x % 32;
  add_all_tiles<kWarps>(pieces, to.group.count, [&](TileSum& total, int n, int tile, bool needed) {
    if (to.whole) {
      total.join_streams();
      store_output_tile(to.out, total, n, tile, to.group.count, lane);
    } else if (needed) {
      post_record_tile(to.record, total, n, tile);
    }
  });
}

// A warp: likewise.
__device__ __forceinline__ void join_pieces_alone(const PieceRecords& pieces, const Destination& to) {
  const int lane = threadIdx.x % 32, count = to.group.count;
  Softmax total;
  total.reset();
  u32 left = 1u << pieces.first | pieces.others;
#pragma unroll 1
  while (left != 0) {
    add_record(total, pieces.record(__ffs(left) - 1) + lane, count, lane);
    left &= left - 1;
  }
  if (to.whole) {
    total.join_streams();
    store_output(to.out, total, count, lane);
  } else {
    store_record<ToBlocks>(to.record, total, count, lane);
  }
}

// The whole block: a piece that continues another belongs to the last one opened before it.
__device__ __forceinline__ void join_all_pieces(const Problem& problem, const Pieces& pieces,
                                                const Run& run) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int left = lane < kWarps ? pieces.left[lane] : 0;
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
    const PieceRecords records{problem, first, continuing & up_to_next & (~1u << first), spilled};
    const Destination to(problem, run, pieces.opened[first], lane);
    if (alone) return join_pieces_alone(records, to);
    join_pieces(records, to);
  }
}

// The whole block. Parts are absent afterwards.
__device__ __forceinline__ void merge_parts(const Problem& problem, const SharedSegment& segment) {
  const int lane = threadIdx.x % 32;
  const HeadGroup group = problem.heads.at(segment.head);
  u16* out = problem.out_of(segment.row, group);
  const PartRecords parts{problem, segment};
  add_all_tiles<16>(parts, group.count, [&](TileSum& total, int n, int tile, bool) {
    total.join_streams();
    store_output_tile(out, total, n, tile, group.count, lane);
  });
  __syncthreads();
#pragma unroll 1
  for (int part = 0; part < segment.parts; ++part) {
    uint4* words = reinterpret_cast<uint4*>(parts.record(part));
    for (int i = threadIdx.x; i < kRecordQuads * 32; i += kThreads)
      words[i] = make_uint4(kAbsent, kAbsent, kAbsent, kAbsent);
  }
}

}  // namespace paged_decode
