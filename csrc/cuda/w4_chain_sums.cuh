// From a row tile's sums, which the warps left in shared memory, to y, and the meetings of all blocks
// between linears.
#pragma once

#include "w4_chain_x.cuh"

namespace w4_chain {

// Rows of x that a block multiplies, of m.
__device__ __forceinline__ int tokens_of_block(int m) {
  return max(0, min(W4_TOKENS, m - static_cast<int>(rank_in_pair()) * W4_TOKENS));
}

__device__ __forceinline__ Packets* packets_of(Packets* all, int tile, int slice, int slices) {
  return all + static_cast<size_t>(tile * slices + slice) * (kPair * W4_TOKENS * 8);
}

__device__ __forceinline__ void store_pair(const Linear& p, int token, int row, float2 value) {
  if (row >= p.n) return;
  if (p.bias != nullptr) {
    value.x += bf16_bits_to_float(p.bias[row]);
    value.y += bf16_bits_to_float(p.bias[row + 1]);
  }
  *reinterpret_cast<u32*>(p.y + static_cast<size_t>(token) * p.n + row) = pack_bf16(value.x, value.y);
}

// A warp's part of a row tile of linear i. Where several blocks share its row tiles, the sums go to
// memory at once, marked, and nobody waits; else to y.
__device__ __forceinline__ void add_warps(const Linear& linear, int i, int m, u32 base, int buffer,
                                          Packets* all, int warp, int lane) {
  const int pair = warp * kPairsOfWarp + lane % kPairsOfWarp;
  const float2 sum =
      add_partials(base + kPartials + buffer * kWarps * kPartialBytes, pair, lane / kPairsOfWarp);
  const int token = pair / 8, tile = load_int(base + kTileOfSum + 4 * buffer);
  if (lane >= kPairsOfWarp || token >= tokens_of_block(m)) return;
  const int first_token = rank_in_pair() * W4_TOKENS;
  if (linear.slices > 1) {
    const int slice = blockIdx.x / kPair % linear.slices;
    store_packets(packets_of(all, tile, slice, linear.slices) + 8 * first_token + pair,
                  marked(sum, load_int(base + kMark) + i));
  } else {
    store_pair(linear, first_token + token, 16 * tile + 2 * (pair % 8), sum);
  }
}

// All blocks have written what they compute of linear i, when the consumers leave this. The last of
// all makes room for the next launch.
__device__ __forceinline__ void meet(const Common& common, int i, int count, int thread) {
  named_barrier(1, 32 * kWarps);
  if (thread == 0) {
    publish();
    const int blocks = gridDim.x, arrived = atomicAdd(common.meeting, 1) + 1;
    STAMP(i, 5);
    if (i + 1 < count) {
      while (load_acquire(common.meeting) < blocks * (i + 1)) {
      }
    } else if (arrived == blocks * count) {
      *common.meeting = 0;
      *common.mark += count;
    }
    STAMP(i + 1, 2);
  }
  if (i + 1 < count) named_barrier(1, 32 * kWarps);
}

// All warps that multiply: an equal share of the sums over slices, each always in the same order.
__device__ __forceinline__ void add_slices(const Linear& linear, int m, u32 mark, const Packets* all,
                                           int thread) {
  const int total = (linear.n + 15) / 16 * 8 * m;
  const int share = (total + gridDim.x - 1) / gridDim.x;
  const int first = blockIdx.x * share, end = min(total, first + share);
#pragma unroll 1
  for (int index = first + thread; index < end; index += 32 * kWarps) {
    const int tile = index / (8 * m), token = index / 8 % m, pair = index % 8;
    const Packets* from = packets_of(const_cast<Packets*>(all), tile, 0, linear.slices) + 8 * token + pair;
    Packets part[kMostSlices];
#pragma unroll
    for (int s = 0; s < kMostSlices; ++s)
      if (s < linear.slices) part[s] = load_packets(from + s * (kPair * W4_TOKENS * 8));
    float2 sum = {0.f, 0.f};
#pragma unroll
    for (int s = 0; s < kMostSlices; ++s) {
      if (s >= linear.slices) break;
      while (!has_mark(part[s], mark)) part[s] = load_packets(from + s * (kPair * W4_TOKENS * 8));
      const float2 numbers = numbers_of(part[s]);
      sum.x += numbers.x;
      sum.y += numbers.y;
    }
    store_pair(linear, token, 16 * tile + 2 * pair, sum);
  }
}

}  // namespace w4_chain
