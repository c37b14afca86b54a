// Values as the tensor cores take them: outputs [16 dims x 8 heads] += values [16 x 16 tokens] · p.
//
// An operand's register holds one dimension of two tokens, so a lane loads the same piece of four
// tokens' rows and zips them. Which dimension of the head a row of the product means is free: lane / 4
// owns pieces as wide as a load, and takes two consecutive dimensions of them in every tile.
#pragma once

#include "paged_decode_ring.cuh"

namespace paged_decode {

constexpr int kValueLaneBytes = kValueRow / 8;
constexpr int kValueLoad = kValueLaneBytes % 16 == 0  ? 16
                           : kValueLaneBytes % 8 == 0 ? 8
                           : kValueLaneBytes % 4 == 0 ? 4
                                                      : 2;
constexpr int kValueLoads = kValueLaneBytes / kValueLoad;
constexpr int kLoadWords = kValueLoad == 2 ? 1 : kValueLoad / 4;
constexpr int kValueWords = kValueLoads * kLoadWords;
// The middle of the codes.
constexpr float kValueCentre = kValueBits == 8 ? 128.0f : 8.0f;

// Consecutive tiles of a lane whose dimensions are consecutive too, eight at most.
constexpr int kLoadTiles = kValueBits == 16 ? kValueLoad / 4 : kValueLoad / 2;
constexpr int kRunTiles = kLoadTiles < 4 ? kLoadTiles : 4;

// The first of the two dimensions that lane / 4 = row has in tile `tile`.
__device__ __forceinline__ int value_dim(int tile, int row) {
  if constexpr (kValueBits == 16) {
    return ((tile / kLoadTiles * 8 + row) * kValueLoad + tile % kLoadTiles * 4) / 2;
  } else {
    // Two bytes of each code row, whose low nibbles are the tiles of the lower half of the head.
    constexpr int kPieces = kValueLaneBytes / 2;
    const int piece = tile % kPieces;
    const int byte = (piece / kLoadTiles * 8 + row) * kValueLoad + piece % kLoadTiles * 2;
    return byte + tile / kPieces * (kHeadDim / 2);
  }
}

// Whether a tile takes the codes of the upper half of the head, from the high ends of their bytes.
__device__ __forceinline__ constexpr bool value_tile_is_upper(int tile) {
  return kValueBits == 4 && tile >= kValueLaneBytes / 2;
}

struct ValueTile {
  u32 words[4][kValueWords];  // of the tokens c, 4 + c, 8 + c and 12 + c where c = lane % 4

  __device__ __forceinline__ static int token(int index, int lane) {
    return 4 * index + lane % 4;
  }

  // Where a lane begins to read in a slot.
  __device__ __forceinline__ static u32 begin(int lane) {
    u32 byte = kValueOffset +
               ((lane % 4 * kValueRow + lane / 4 * kValueLoad) ^ value_swizzle(lane % 4));
    keep(byte);
    return byte;
  }

  // slot, tile: of the step. begin: see above.
  __device__ __forceinline__ void read(u32 slot, int tile, u32 begin) {
    const u32 rows = slot + begin;
#pragma unroll
    for (int index = 0; index < 4; ++index)
#pragma unroll
      for (int i = 0; i < kValueLoads; ++i)
        take<kValueLoad>(words[index] + i * kLoadWords,
                         rows + (16 * tile + 4 * index) * kValueRow + 8 * i * kValueLoad);
  }

  // Of tokens outside [begin, end), counted from the tile's first.
  __device__ __forceinline__ void clear_outside(int begin, int end, int lane) {
#pragma unroll
    for (int index = 0; index < 4; ++index)
#pragma unroll
      for (int i = 0; i < kValueWords; ++i)
        if (token(index, lane) < begin || token(index, lane) >= end) words[index][i] = 0;
  }

  __device__ __forceinline__ void operand(u32 (&a)[4], int tile) const {
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      if constexpr (kValueBits == 16) {
        a[2 * pair] = zipped(pair, tile, 0x5410);
        a[2 * pair + 1] = zipped(pair, tile, 0x7632);
      } else {
        constexpr int kPieces = kValueLaneBytes / 2;
        const int piece = tile % kPieces;
        const bool high = kValueLoad > 2 && piece % 2 == 1;
        const u32 bytes = zipped(pair, kValueLoad > 2 ? piece / 2 : piece, high ? 0x7632 : 0x5410);
        const bool upper = value_tile_is_upper(tile);
        a[2 * pair] = upper ? upper_codes(bytes) : even_bytes(bytes);
        a[2 * pair + 1] = upper ? upper_codes(odd_bytes(bytes)) : odd_bytes(bytes);
      }
    }
  }

 private:
  __device__ __forceinline__ u32 zipped(int pair, int word, u32 selection) const {
    return __byte_perm(words[2 * pair][word], words[2 * pair + 1][word], selection);
  }
};

}  // namespace paged_decode
