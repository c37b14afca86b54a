// A warp's keys and values on their way from memory: a ring of slots in shared memory, filled by
// asynchronous copies long before they are used. A slot holds the keys of a step, its values, and where
// pages hold codes the parameters of both.
//
// Rows lie in a slot as in their page, but that pieces of 32 or 64 bytes change places, so that lanes
// that read together meet no bank twice.
#pragma once

#include "paged_decode_format.cuh"

namespace paged_decode {

constexpr int kSlots = PD_SLOTS;
constexpr int kParamBytes = kQuantized ? 4 * kTokens : 0;  // of keys, and as many of values
constexpr int kValueOffset = kTokens * kKeyRow;
constexpr int kParamOffset = kValueOffset + kTokens * kValueRow;
constexpr int kSlotBytes = kParamOffset + 2 * kParamBytes;
static_assert(kValueOffset % 128 == 0 && kSlotBytes % 16 == 0);

// Of shared memory, for what all warps of a block know. The rings of all warps follow.
constexpr int kFixedBytes = 1024;

extern __shared__ float4 shared_quads[];

// kBytes (16, 8, 4 or 2) of shared memory. Two bytes come as the low half of a word.
template <int kBytes>
__device__ __forceinline__ void take(u32* words, u32 offset) {
  const unsigned char* from = reinterpret_cast<const unsigned char*>(shared_quads) + offset;
  if constexpr (kBytes == 16) {
    const uint4 four = *reinterpret_cast<const uint4*>(from);
    words[0] = four.x, words[1] = four.y, words[2] = four.z, words[3] = four.w;
  } else if constexpr (kBytes == 8) {
    const uint2 two = *reinterpret_cast<const uint2*>(from);
    words[0] = two.x, words[1] = two.y;
  } else if constexpr (kBytes == 4) {
    words[0] = *reinterpret_cast<const u32*>(from);
  } else {
    static_assert(kBytes == 2);
    words[0] = *reinterpret_cast<const u16*>(from);
  }
}

__device__ __forceinline__ constexpr bool is_power_of_two(int n) { return (n & (n - 1)) == 0; }

// What a byte's place in a slot is XORed with, by the token whose row it is in.
__device__ __forceinline__ constexpr u32 key_swizzle(u32 token) {
  return is_power_of_two(kKeyRow) ? (token & 4) << 4 : 0;
}

__device__ __forceinline__ constexpr u32 value_swizzle(u32 token) {
  if (!is_power_of_two(kValueRow) || kValueRow < 64) return 0;
  return kValueRow == 64 ? (token & 2) << 4 : (token & 3) << 5;
}

// kBytes of consecutive rows, of kRow bytes each, to an offset in shared memory. from: what this lane
// begins with. swizzle(token): see above, of bits below 512.
template <int kBytes, int kRow, class Swizzle>
__device__ __forceinline__ void copy_rows(u32 to, const unsigned char* from, int lane,
                                          const Swizzle& swizzle) {
#pragma unroll
  for (int byte = 0; byte < kBytes; byte += 512) {
    const u32 token =
        is_power_of_two(kRow) ? 16 * lane / kRow + byte / kRow : (16 * lane + byte) / kRow;
    if (byte + 512 <= kBytes || byte + 16 * lane < kBytes)
      copy_async(to + ((16 * lane) ^ swizzle(token)) + byte, from + byte);
  }
}

// Where a lane takes its 16 bytes from of each 512 of a step.
class StepSource {
 public:
  // place: of the step's first token.
  __device__ __forceinline__ void point_to(const Pages& pages, const Place& place, int lane) {
    keys_ = pages.keys + static_cast<size_t>(place.row) * kKeyRow + 16 * lane;
    values_ = pages.values + static_cast<size_t>(place.row) * kValueRow + 16 * lane;
    if constexpr (kQuantized) {
      const bool of_values = param_lane(lane) >= kParamLanes;
      const int word = of_values ? pages.kv_heads * kPageTokens - 4 * kParamLanes : 0;
      params_ = pages.params + (place.params + word + 4 * param_lane(lane));
    }
  }

  // In the same page.
  __device__ __forceinline__ void point_to_next() {
    keys_ += kTokens * kKeyRow;
    values_ += kTokens * kValueRow;
    if constexpr (kQuantized) params_ += kTokens;
  }

  // slot: its offset in shared memory.
  __device__ __forceinline__ void copy_to(u32 slot, int lane) const {
    copy_rows<kTokens * kKeyRow, kKeyRow>(slot, keys_, lane,
                                          [](u32 token) { return key_swizzle(token); });
    copy_rows<kTokens * kValueRow, kValueRow>(slot + kValueOffset, values_, lane,
                                              [](u32 token) { return value_swizzle(token); });
    // Some lanes copy what others do: they would have to be told apart in every step.
    if constexpr (kQuantized) copy_async(slot + kParamOffset + 16 * param_lane(lane), params_);
  }

 private:
  static constexpr int kParamLanes = kParamBytes / 16;
  static_assert(2 * kParamLanes <= 32);

  __device__ __forceinline__ static int param_lane(int lane) {
    return kQuantized ? lane & (2 * kParamLanes - 1) : lane;
  }

  const unsigned char* keys_;
  const unsigned char* values_;
  const u32* params_;
};

// Scale and minimum of the tokens score_token and score_token + 8 of a tile. from: the first one's, an
// offset in shared memory.
__device__ __forceinline__ void take_params(u32 (&params)[2], u32 from) {
#pragma unroll
  for (int half = 0; half < 2; ++half) take<4>(params + half, from + 32 * half);
}

// Slots are named by their offset in shared memory. Every slot that is handed out to be filled again
// must be committed, with or without copies.
class Ring {
 public:
  __device__ __forceinline__ explicit Ring(u32 first) : first_(first), at_(first) {}

  // The oldest slot, when what was copied there has arrived.
  __device__ __forceinline__ u32 oldest() const {
    wait_for_copies<kSlots - 1>();
    __syncwarp();
    return at_;
  }

  // The same slot, when the warp has read it: to be filled as the newest one.
  __device__ __forceinline__ u32 pass() {
    __syncwarp();
    const u32 slot = at_;
    at_ += kSlotBytes;
    if (at_ == first_ + kSlots * kSlotBytes) at_ = first_;
    return slot;
  }

 private:
  u32 first_, at_;
};

}  // namespace paged_decode
