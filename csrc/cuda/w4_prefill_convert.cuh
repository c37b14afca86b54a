// Inputs become integers of 16 bits on their way to the ring: three warps beside the one that fetches
// weights read them from global memory, ahead of the ring, and write what wgmma u8 x s8 takes.
//
// An input of a token and a group is i * scale, scale a power of two so large that the largest i has 15
// bits: what lies within a factor of 2^7 of the largest stays as it is. i = 256 * high + low, both s8. A
// stage holds the tokens' high bytes, then their low bytes: 2 * kTokens rows of 128 inputs, each input
// 16s + 8h + 2c + p at byte 16s + 4c + 2p + h (a word of codes, masked, holds those of c), in the
// 128-byte swizzle.
#pragma once

#include "w4_prefill_tile.cuh"
#include "w4_schedule.cuh"

namespace w4_prefill {

// A lane's: 16 inputs of one token, in pairs of BF16.
struct Inputs {
  u32 pairs[8];
};

// The same as integers, and what all of the token's have in common: scale and the sum of i.
struct Integers {
  u32 high[4], low[4];
  float scale;
  int sum;
};

__device__ __forceinline__ u32 max_of_halves(u32 a, u32 b) {
  u32 most;
  asm("max.u16x2 %0, %1, %2;" : "=r"(most) : "r"(a), "r"(b));
  return most;
}

// The largest magnitude (bits of a BF16 number) of a token's inputs, which eight lanes hold.
__device__ __forceinline__ u32 largest_of(const Inputs& inputs) {
  u32 most = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) most = max_of_halves(most, inputs.pairs[i] & 0x7fff7fffu);
#pragma unroll
  for (int lanes = 4; lanes > 0; lanes /= 2)
    most = max_of_halves(most, __shfl_xor_sync(0xffffffffu, most, lanes));
  return max(most & 0xffffu, most >> 16);
}

// i + 128 in the low 16 bits: a float from 2^23 to 2^24 counts ones.
__device__ __forceinline__ u32 biased_integer(u32 float_bits, float factor) {
  return __float_as_uint(fmaf(__uint_as_float(float_bits), factor, 12582912.0f + 128.0f));
}

// Not a number and infinity make the token's scale not a number.
__device__ __forceinline__ Integers integers_of(const Inputs& inputs) {
  constexpr u32 kInfinity = 0x7f80u;
  const u32 largest = largest_of(inputs);
  // 32640 = 255 * 2^7 has a high byte of 128: the largest mantissa counts as the next exponent.
  const u32 exponent = (largest + 1) >> 7;
  const u32 factor_exponent = min(268u - exponent, 253u);
  const float factor = __uint_as_float(factor_exponent << 23);
  Integers result;
  result.scale =
      __uint_as_float(largest >= kInfinity ? 0x7fc00000u : (254u - factor_exponent) << 23);
  int high = 0, low = 0;
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    u32 both[2];  // bytes low, low, high, high: of halves 0 and 1
#pragma unroll
    for (int p = 0; p < 2; ++p) {
      u32 biased[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const u32 pair = inputs.pairs[4 * half + c];
        biased[half] = biased_integer(p == 0 ? pair << 16 : pair & 0xffff0000u, factor);
      }
      both[p] = __byte_perm(biased[0], biased[1], 0x5140);
    }
    result.low[c] = __byte_perm(both[0], both[1], 0x5410) ^ 0x80808080u;
    result.high[c] = __byte_perm(both[0], both[1], 0x7632);
    low = __dp4a(static_cast<int>(result.low[c]), 0x01010101, low);
    high = __dp4a(static_cast<int>(result.high[c]), 0x01010101, high);
  }
  result.sum = 256 * high + low;
#pragma unroll
  for (int lanes = 4; lanes > 0; lanes /= 2)
    result.sum += __shfl_xor_sync(0xffffffffu, result.sum, lanes);
  return result;
}

// One warp's share: every third unit of four tokens of a group.
class Converter {
 public:
  __device__ __forceinline__ Converter(const Shared& shared, const w4::Problem& problem, int worker,
                                       int index)
      : shared_(shared), schedule_(problem, worker), index_(index), token_(threadIdx.x % 32 / 8),
        chunk_(threadIdx.x % 8) {}

  // x: BF16 [m, k]
  __device__ __forceinline__ void run(const unsigned short* x, int m, int k) {
    const unsigned short* own = x + static_cast<long long>(token_) * k + chunk_ * 16;
    const auto load = [&](Inputs& inputs) {
      if (!more_) return 0;
#pragma unroll
      for (int i = 0; i < 8; ++i) inputs.pairs[i] = 0;
      if (4 * unit_ + token_ < m) load_inputs(inputs, own + 4 * unit_ * k + group_ * 128);
      step();
      return 1;
    };
    more_ = schedule_.next(segment_);
    group_ = segment_.begin;
    unit_ = index_;
    settle();
    wait_for_predecessors();
    Inputs inputs[kAhead];
    int under_way = 0;
#pragma unroll
    for (int i = 0; i < kAhead; ++i) under_way += load(inputs[i]);
    Ring ring;
    int unit = index_;
    while (true) {
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (under_way == 0) return;
        for (; unit >= kUnits; unit -= kUnits) ring.advance();
        const Integers integers = integers_of(inputs[i]);
        under_way += load(inputs[i]) - 1;
        barrier_wait(shared_.empty + 8 * ring.stage, ring.parity ^ 1);
        store(integers, ring.stage, 4 * unit + token_);
        fence_async_proxy();
        __syncwarp();
        if (threadIdx.x % 32 == 0) barrier_arrive(shared_.full + 8 * ring.stage);
        unit += kConverters;
      }
    }
  }

 private:
  static constexpr int kAhead = 3;  // units whose inputs are under way

  __device__ __forceinline__ void step() {
    unit_ += kConverters;
    settle();
  }

  // Goes on to the group that holds the unit.
  __device__ __forceinline__ void settle() {
    for (; unit_ >= kUnits && more_; unit_ -= kUnits) {
      if (++group_ < segment_.end) continue;
      more_ = schedule_.next(segment_);
      group_ = segment_.begin;
    }
  }

  __device__ __forceinline__ static void load_inputs(Inputs& inputs, const unsigned short* from) {
    const uint4 first = load_global(from), second = load_global(from + 8);
    const u32 words[8] = {first.x,  first.y,  first.z,  first.w,
                          second.x, second.y, second.z, second.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) inputs.pairs[i] = words[i];
  }

  __device__ __forceinline__ void store(const Integers& integers, int stage, int token) const {
    const u32 row = shared_.tokens + stage * kTokenBytes + token * 128 + (chunk_ ^ token % 8) * 16;
    store_shared(row, integers.high);
    store_shared(row + kSliceBytes, integers.low);
    if (chunk_ == 0)
      store_shared(shared_.scales + stage * kScaleBytes + token * 8,
                   __float_as_uint(integers.scale), static_cast<u32>(integers.sum));
  }

  const Shared& shared_;
  w4::Schedule schedule_;
  int index_;  // among the converters
  int token_, chunk_;  // of a unit and a row, this lane's
  // What is loaded next.
  w4::Segment segment_;
  int group_, unit_;
  bool more_;
};

}  // namespace w4_prefill
