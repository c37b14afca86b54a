// Keys as the tensor cores take them: scores [16 tokens x 8 heads] = keys [16 x 16] · queries.
//
// Which of the head's dimensions a product's k index means is free as long as keys and queries
// agree, so the four lanes of a quad share a token's row in pieces as wide as a load, and every
// register that a load fills is (after its codes are widened) an operand as it stands.
#pragma once

#include "paged_decode_ring.cuh"

namespace paged_decode {

constexpr int kKeyLaneBytes = kKeyRow / 4;
constexpr int kKeyLoad = kKeyLaneBytes % 16 == 0 ? 16 : kKeyLaneBytes % 8 == 0 ? 8 : 4;
constexpr int kKeyLoads = kKeyLaneBytes / kKeyLoad;
constexpr int kKeyWords = kKeyLaneBytes / 4;

// Whether a k16 step takes the codes of the upper half of the head, from the high ends of its bytes.
__device__ __forceinline__ constexpr bool key_step_is_upper(int step) {
  return kKeyBits == 4 && step % 2 == 1;
}

// Of the tokens score_token and score_token + 8.
struct KeyTile {
  u32 words[2][kKeyWords];

  // Where a lane begins to read in a slot: with loads of even and of odd numbers, since the swizzle
  // changes bit 6.
  struct Begin {
    u32 bytes[2];

    __device__ __forceinline__ explicit Begin(int lane) {
      const u32 first = score_token(lane) * kKeyRow + lane % 4 * kKeyLoad;
#pragma unroll
      for (int odd = 0; odd < 2; ++odd) {
        bytes[odd] = (first + 4 * odd * kKeyLoad) ^ key_swizzle(score_token(lane));
        keep(bytes[odd]);
      }
    }
  };

  // slot, tile: of the step.
  __device__ __forceinline__ void read(u32 slot, int tile, const Begin& begin) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int i = 0; i < kKeyLoads; ++i) {
        const u32 rows = slot + (16 * tile + 8 * half) * kKeyRow + i / 2 * 8 * kKeyLoad;
        take<kKeyLoad>(words[half] + i * (kKeyLoad / 4), rows + begin.bytes[i % 2]);
      }
  }

  // Dimensions of k16 step `step`.
  __device__ __forceinline__ void operand(u32 (&a)[4], int step) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if constexpr (kKeyBits == 16) {
        a[half] = words[half][2 * step];
        a[half + 2] = words[half][2 * step + 1];
      } else {
        const u32 word = words[half][kKeyBits == 8 ? step : step / 2];
        const bool upper = key_step_is_upper(step);
        a[half] = upper ? upper_codes(word) : even_bytes(word);
        a[half + 2] = upper ? upper_codes(odd_bytes(word)) : odd_bytes(word);
      }
    }
  }
};

// The first of the four consecutive dimensions that lane % 4 = column has in a step. Codes come out
// of a word as elements 0 and 2, and then 1 and 3.
__device__ __forceinline__ int key_dim(int step, int column) {
  constexpr int kLoadWords = kKeyLoad / 4;
  const int word = kKeyBits == 16 ? 2 * step : kKeyBits == 8 ? step : step / 2;
  const int byte =
      (word / kLoadWords * 4 + column) * kKeyLoad + word % kLoadWords * 4;
  if constexpr (kKeyBits == 16) return byte / 2;
  if constexpr (kKeyBits == 8) return byte;
  return byte + step % 2 * (kHeadDim / 2);
}

// The queries of a head group, of each stream the same; heads beyond it are zeros. For codes they are
// raised.
struct Queries {
  u32 operand[kHeadTiles][kDimTiles][2];
  float sums[kHeadTiles][2];  // Σ q of the columns 2 · (lane % 4) and the next one

  // q: [heads, kHeadDim] of the row, from the group's first head on.
  __device__ __forceinline__ void load(const u16* q, int count, int lane) {
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n) {
      const int head = 8 * n + lane / 4 % (8 / kStreams);
      const u16* from = q + head * kHeadDim;
#pragma unroll
      for (int step = 0; step < kDimTiles; ++step) {
        uint2 four = make_uint2(0, 0);
        if (head < count) four = load_pair(from + key_dim(step, lane % 4));
        operand[n][step][0] = kQuantized ? __byte_perm(four.x, four.y, 0x5410) : four.x;
        operand[n][step][1] = kQuantized ? __byte_perm(four.x, four.y, 0x7632) : four.y;
      }
      if constexpr (kQuantized) {
        add_up(n, lane);
        raise(n);
      }
    }
  }

 private:
  // By powers of two, which is exact; those that meet larger codes by less.
  __device__ __forceinline__ void raise(int n) {
#pragma unroll
    for (int step = 0; step < kDimTiles; ++step) {
      const u32 power = 127 + kRaise - code_shift(key_step_is_upper(step));
      const u32 factors = (power << 7) * 0x00010001u;
#pragma unroll
      for (int i = 0; i < 2; ++i)
        operand[n][step][i] = multiply_add_bf16(operand[n][step][i], factors, 0x80008000u);
    }
  }

  __device__ __forceinline__ void add_up(int n, int lane) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 2 * kDimTiles; ++i) {
      const u32 pair = operand[n][i / 2][i % 2];
      sum += __uint_as_float(pair << 16) + __uint_as_float(pair & 0xffff0000u);
    }
    sum += __shfl_xor_sync(kAll, sum, 1);
    sum += __shfl_xor_sync(kAll, sum, 2);
#pragma unroll
    for (int i = 0; i < 2; ++i) sums[n][i] = __shfl_sync(kAll, sum, 4 * (2 * (lane % 4) + i));
  }
};

}  // namespace paged_decode
