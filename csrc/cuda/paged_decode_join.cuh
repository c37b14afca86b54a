// What the warps of a block, and then the blocks of a launch, have of one segment comes together.
//
// Pieces of warps are added up by all warps of their block, a tile of the output each, or where there are
// many segments a segment each; the parts of blocks, through L2, by the block that is done last.
#pragma once

#include "paged_decode_walk.cuh"

namespace paged_decode {

struct SharedMemory {
  Pieces pieces;
  SharedSegment shared[2];  // as BlockShare has them; known behind the first barrier
  u32 in_rings[2];          // BlockShare::joined
  bool joined[2];           // by the block's warps
};

static_assert(sizeof(SharedMemory) <= kFixedBytes);

constexpr int kMostWarpsOfFew = 12;  // more are there for blocks that have many segments
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

  __device__ __forceinline__ void operator()(Softmax& softmax, const Segment& segment) const {
    const int lane = threadIdx.x % 32;
    const HeadGroup group = problem.heads.at(segment.head);
    if (run.holds(segment)) {
      softmax.join_streams();
      store_output(problem.out_of(segment.row, group), softmax, group.count, lane);
      return;
    }
    const bool begins = segment.begin >= run.begin;
    store_record(problem.record(blockIdx.x, begins, lane), softmax, group.count, lane);
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

// The same where all lie in rings.
struct RingRecords {
  u32 warps;  // bits of those that left one

  __device__ __forceinline__ int places() const { return kWarps; }

  template <int kGroups>
  __device__ __forceinline__ void load_all(float4 (&found)[kWarps], float4 (&heads)[kGroups], int,
                                           int at, int heads_at, bool needed) const {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const int warp = 8 * g + threadIdx.x % 32 / 4;
      if (needed && warp < kWarps && (warps >> warp & 1) != 0)
        heads[g] = shared_quads[ring_of(warp) / 16 + heads_at];
    }
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) {
      found[warp] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      if ((warps >> warp & 1) != 0) found[warp] = shared_quads[ring_of(warp) / 16 + at];
    }
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
  bool whole, begins;
  u16* out;
  float4* record;  // the lane's first float4

  __device__ __forceinline__ Destination(const Problem& problem, const Run& run,
                                         const Segment& segment, int lane)
      : group(problem.heads.at(segment.head)), whole(run.holds(segment)),
        begins(segment.begin >= run.begin), out(problem.out_of(segment.row, group)),
        record(problem.record(blockIdx.x, begins, lane)) {}

  __device__ __forceinline__ void put(TileSum& total, int n, int tile, bool needed, int lane) const {
    if (whole) {
      total.join_streams();
      store_output_tile(out, total, n, tile, group.count, lane);
    } else if (needed) {
      store_record_tile(record, total, n, tile);
    }
  }
};

// The whole block: the pieces of a segment.
__device__ __forceinline__ void join_pieces(const PieceRecords& pieces, const Destination& to) {
  const int lane = threadIdx.x % 32;
  add_all_tiles<kWarps>(pieces, to.group.count, [&](TileSum& total, int n, int tile, bool needed) {
    to.put(total, n, tile, needed, lane);
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
    store_record(to.record, total, count, lane);
  }
}

// The whole block: one segment or two whose pieces all lie in rings, a tile of either to each warp.
__device__ __forceinline__ void join_rings(const Problem& problem, SharedMemory& memory,
                                           const Run& run) {
  constexpr int kTiles = kHeadTiles * kDimTiles;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int tiles = memory.in_rings[1] == 0 ? kTiles : 2 * kTiles;
#pragma unroll 1
  for (int i = warp; i < tiles; i += kWarps) {
    const u32 warps = memory.in_rings[i >= kTiles];
    const Destination to(problem, run, memory.pieces.opened[__ffs(warps) - 1], lane);
    const int at = i % kTiles, n = at / kDimTiles, tile = at % kDimTiles;
    const bool needed = has_heads(n, to.group.count, lane);
    TileSum total = add_tiles<kWarps>(RingRecords{warps}, needed, n, tile);
    to.put(total, n, tile, needed, lane);
    if (at == 0 && lane == 0 && !to.whole) memory.joined[to.begins] = true;
  }
}

// The whole block: a piece that continues another belongs to the last one opened before it.
__device__ __forceinline__ void join_all_pieces(const Problem& problem, SharedMemory& memory,
                                                const Run& run) {
  if (kWarps <= kMostWarpsOfFew && memory.in_rings[0] != 0) return join_rings(problem, memory, run);
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
__device__ __forceinline__ void merge_parts(const Problem& problem, const SharedSegment& segment) {
  const int lane = threadIdx.x % 32;
  const HeadGroup group = problem.heads.at(segment.head);
  u16* out = problem.out_of(segment.row, group);
  add_all_tiles<16>(PartRecords{problem, segment}, group.count,
                    [&](TileSum& total, int n, int tile, bool) {
                      total.join_streams();
                      store_output_tile(out, total, n, tile, group.count, lane);
                    });
}

}  // namespace paged_decode
