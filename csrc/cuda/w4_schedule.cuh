// Which part of the product a worker (a cluster of blocks) computes, and in which order.
//
// The output is cut into tiles of (cluster rows) x (tokens). The first `stream_tiles` tiles are
// laid end to end along K and cut into equal runs, one a worker (stream-K: Osama et al. 2023);
// the others are dealt out whole, round robin. Tokens run fastest within a band of `band` token
// tiles, so that what runs at one time shares both weights and tokens through L2.
#pragma once

namespace w4 {

struct Problem {
  int row_tiles;     // cluster-wide tiles of output rows (weights)
  int token_tiles;
  int groups;        // K / 128
  int band;          // token tiles a raster band holds
  int stream_tiles;  // tiles shared out along K
  int workers;
  int slice;         // of a whole tile, this block computes slice `slice` of `slices` along K
  int slices;
};

// A run of quantization groups [begin, end) of one tile.
struct Segment {
  int tile;
  int begin;
  int end;
};

// Where worker's run begins on the line of all stream tiles' groups.
__device__ __forceinline__ int stream_begin(const Problem& p, int worker) {
  return static_cast<int>(static_cast<long long>(p.stream_tiles) * p.groups * worker / p.workers);
}

class Schedule {
 public:
  __device__ __forceinline__ Schedule(const Problem& problem, int worker)
      : problem_(problem),
        position_(stream_begin(problem, worker)),
        stream_end_(stream_begin(problem, worker + 1)),
        next_whole_(problem.stream_tiles + worker) {}

  __device__ __forceinline__ bool next(Segment& segment) {
    if (position_ < stream_end_) {
      segment.tile = position_ / problem_.groups;
      segment.begin = position_ - segment.tile * problem_.groups;
      segment.end = min(problem_.groups, segment.begin + stream_end_ - position_);
      position_ += segment.end - segment.begin;
      return true;
    }
    segment.tile = next_whole_;
    segment.begin = problem_.groups * problem_.slice / problem_.slices;
    segment.end = problem_.groups * (problem_.slice + 1) / problem_.slices;
    next_whole_ += problem_.workers;
    return segment.tile < problem_.row_tiles * problem_.token_tiles;
  }

 private:
  const Problem& problem_;
  int position_;
  int stream_end_;
  int next_whole_;
};

struct TilePosition {
  int row_tile;
  int token_tile;
};

__device__ __forceinline__ TilePosition tile_position(const Problem& p, int tile) {
  const int band_tiles = p.row_tiles * p.band;
  const int band = tile / band_tiles;
  const int first = band * p.band;
  const int width = min(p.band, p.token_tiles - first);
  const int within = tile - band * band_tiles;
  return {within / width, first + within % width};
}

}  // namespace w4
