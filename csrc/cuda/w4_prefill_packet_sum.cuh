// The sum over the blocks that computed one tile, each over its part of K, through memory: they may lie
// on any multiprocessors, which clusters may not.
//
// A thread's sums fall into chunks; chunk o of a thread belongs to block o, which adds up what the same
// thread of all blocks has of it, in their order.
#pragma once

#include "w4_packets.cuh"
#include "w4_prefill_store.cuh"

namespace w4_prefill {

// The least even number of sums such that all blocks together can take a thread's.
constexpr int chunk_for(int sums, int blocks) {
  int chunk = 2;
  while (chunk * blocks < sums) chunk *= 2;
  return chunk;
}

template <int kBlocksOfTile>
class PacketSum {
 public:
  // packets: of this tile and warpgroup. rank: of the block, among the tile's.
  __device__ __forceinline__ PacketSum(w4::Packets* packets, u32 mark, int rank)
      : packets_(packets + threadIdx.x % kWarpgroup), mark_(mark), rank_(rank) {}

  static constexpr int kChunk = chunk_for(kSums, kBlocksOfTile);
  static constexpr int kOwners = kSums / kChunk;
  static constexpr int kChunkPackets = kChunk / 2 * kWarpgroup;
  static constexpr int kPackets = kOwners * kBlocksOfTile * kChunkPackets;  // of a tile and warpgroup

  // To every owner its chunk, the block's own too: then no sum waits in registers.
  __device__ __forceinline__ void send(const float (&sums)[kSums]) const {
#pragma unroll
    for (int owner = 0; owner < kOwners; ++owner)
#pragma unroll
      for (int i = 0; i < kChunk / 2; ++i) {
        const int at = owner * kChunk + 2 * i;
        w4::store_packets(slot(owner, rank_, i), w4::marked(sums[at], sums[at + 1], mark_));
      }
  }

  // The block's chunk, added up; only for owners.
  __device__ __forceinline__ void collect(float (&all)[kChunk]) const {
    w4::Packets parts[kBlocksOfTile][kChunk / 2];
#pragma unroll
    for (int block = 0; block < kBlocksOfTile; ++block)
#pragma unroll
      for (int i = 0; i < kChunk / 2; ++i)
        parts[block][i] = w4::load_packets(slot(rank_, block, i));
#pragma unroll
    for (int i = 0; i < kChunk; ++i) all[i] = 0.0f;
#pragma unroll
    for (int block = 0; block < kBlocksOfTile; ++block)
#pragma unroll
      for (int i = 0; i < kChunk / 2; ++i) {
        while (!w4::has_mark(parts[block][i], mark_))
          parts[block][i] = w4::load_packets(slot(rank_, block, i));
        all[2 * i] += w4::first_of(parts[block][i]);
        all[2 * i + 1] += w4::second_of(parts[block][i]);
      }
  }

  // Writes it to y. row, token: the warpgroup's first.
  __device__ __forceinline__ void write(const float (&all)[kChunk], const Output& out, int row,
                                        int token) const {
    const int lane = threadIdx.x % 32, r = lane / 4, c = lane % 4;
#pragma unroll
    for (int i = 0; i < kChunk; i += 2) {
      // Sums come in pairs of neighbouring tokens of one row; lanes of neighbouring rows exchange, so
      // that each has a pair of rows.
      const int pair = (rank_ * kChunk + i) / 2;
      const float got = __shfl_xor_sync(0xffffffffu, r % 2 ? all[i] : all[i + 1], 4);
      const float low = r % 2 ? got : all[i], high = r % 2 ? all[i + 1] : got;
      const int to_row = row + threadIdx.x / 32 % 4 * 16 + (r & ~1) + pair % 2 * 8;
      const int to_token = token + pair / 2 * 8 + 2 * c + r % 2;
      if (to_row >= out.n || to_token >= out.m) continue;
      const float bias[2] = {out.bias == nullptr ? 0.0f : bf16_to_float(out.bias[to_row]),
                             out.bias == nullptr ? 0.0f : bf16_to_float(out.bias[to_row + 1])};
      *reinterpret_cast<u32*>(out.y + static_cast<long long>(to_token) * out.n + to_row) =
          pack_bf16(low + bias[0], high + bias[1]);
    }
  }

 private:
  __device__ __forceinline__ w4::Packets* slot(int owner, int source, int i) const {
    return packets_ + (owner * kBlocksOfTile + source) * kChunkPackets + i * kWarpgroup;
  }

  w4::Packets* packets_;
  u32 mark_;
  int rank_;
};

}  // namespace w4_prefill
