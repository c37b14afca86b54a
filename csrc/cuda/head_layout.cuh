// One head of BF16 numbers in the registers of a group of lanes, several heads to a warp.
//
// A lane holds pairs of neighbours, a word each. Where the size of a head is a power of two it has
// two words of the first half of the head and the two at the same place of the second half, so that
// both ends of a rotation and both codes of a byte are its own. Heads of 96 are three blocks of 32, and a
// lane has the same word of each.
#pragma once
#include "bf16.cuh"

namespace awqkit {

constexpr u32 kWarp = 0xffffffffu;

template <int kHeadDim>
struct HeadLayout {
  static constexpr bool kHalves = (kHeadDim & (kHeadDim - 1)) == 0;
  static_assert(kHalves ? kHeadDim >= 64 && kHeadDim <= 256 : kHeadDim == 96);
  static constexpr int kLanes = kHalves ? kHeadDim / 8 : 16;
  static constexpr int kWords = kHeadDim / 2 / kLanes;
  static constexpr int kNumbers = 2 * kWords;
  static constexpr int kHeadsAWarp = 32 / kLanes;

  // Of a word's first number; the other one follows it.
  __device__ __forceinline__ static int element(int word, int lane) {
    return kHalves ? word / 2 * (kHeadDim / 2) + 4 * lane + 2 * (word % 2) : 32 * word + 2 * lane;
  }

  // Over the lanes of a head; every lane of the warp takes part.
  __device__ __forceinline__ static float sum(float value) {
#pragma unroll
    for (int distance = 1; distance < kLanes; distance *= 2)
      value += __shfl_xor_sync(kWarp, value, distance);
    return value;
  }
  __device__ __forceinline__ static float max(float value) {
#pragma unroll
    for (int distance = 1; distance < kLanes; distance *= 2)
      value = fmaxf(value, __shfl_xor_sync(kWarp, value, distance));
    return value;
  }
  __device__ __forceinline__ static bool any(bool value) {
    const u32 votes = __ballot_sync(kWarp, value) >> (threadIdx.x & (32 - kLanes));
    return (votes & (kWarp >> (32 - kLanes))) != 0;
  }
};

// A lane's words. Heads are 8-byte aligned.
template <int kHeadDim>
struct HeadWords {
  using Layout = HeadLayout<kHeadDim>;
  u32 word[Layout::kWords];

  __device__ __forceinline__ static HeadWords load(const u16* head, int lane) {
    HeadWords words;
    if constexpr (Layout::kHalves) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint2 two = *reinterpret_cast<const uint2*>(head + Layout::element(2 * half, lane));
        words.word[2 * half] = two.x;
        words.word[2 * half + 1] = two.y;
      }
    } else {
#pragma unroll
      for (int j = 0; j < Layout::kWords; ++j)
        words.word[j] = *reinterpret_cast<const u32*>(head + Layout::element(j, lane));
    }
    return words;
  }

  __device__ __forceinline__ void store(u16* head, int lane) const {
    if constexpr (Layout::kHalves) {
#pragma unroll
      for (int half = 0; half < 2; ++half)
        *reinterpret_cast<uint2*>(head + Layout::element(2 * half, lane)) =
            make_uint2(word[2 * half], word[2 * half + 1]);
    } else {
#pragma unroll
      for (int j = 0; j < Layout::kWords; ++j)
        *reinterpret_cast<u32*>(head + Layout::element(j, lane)) = word[j];
    }
  }
};

}  // namespace awqkit
