// Inputs become integers of 16 bits on their way to the ring: all warps of the producers but the one that
// fetches weights read them from global memory, ahead of the ring, and write what wgmma u8 x s8 takes.
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

// The same as integers, and what all of the token's have in common: scale and the negative sum of i.
struct Integers {
  u32 high[4], low[4];
  float scale;
  int minus_sum;
};

__device__ __forceinline__ u32 max_of_halves(u32 a, u32 b) {
  u32 most;
  asm("max.u16x2 %0, %1, %2;" : "=r"(most) : "r"(a), "r"(b));
  return most;
}

// The largest magnitude (bits of a BF16 number) of a token's inputs, which eight lanes hold.
__device__ __forceinline__ u32 largest_of(const Inputs& inputs) {
  constexpr u32 kMagnitudes = 0x7fff7fffu;
  u32 most = inputs.pairs[0] & kMagnitudes;
#pragma unroll
  for (int i = 1; i < 8; ++i) most = max_of_halves(most, inputs.pairs[i] & kMagnitudes);
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
  int high = 0, low = 0;  // sums
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
  result.minus_sum = -256 * high - low;
#pragma unroll
  for (int lanes = 4; lanes > 0; lanes /= 2)
    result.minus_sum += __shfl_xor_sync(0xffffffffu, result.minus_sum, lanes);
  return result;
}

// One warp's share: of every kConverters units of four tokens of a group one. Whoever multiplies orders
// its stores before the tensor cores' reads: a fence here would wait for all loads under way.
class Converter {
 public:
  __device__ __forceinline__ Converter(const Shared& shared, const w4::Problem& problem, int worker,
                                       int index)
      : schedule_(problem, worker), index_(index), full_(kept(shared.full)),
        empty_(kept(shared.empty)) {
    // Rows of a unit of an odd number are 4 to 7 of eight: their chunks lie at c XOR 4 besides.
    const u32 token = threadIdx.x % 32 / 8, chunk = threadIdx.x % 8;
    tokens_ = kept(shared.tokens + token * 128 + (chunk ^ token) * 16);
    scales_ = kept(shared.scales + token * 8);
  }

  // x: BF16 [m, k]. Tokens from m on are those of token m - 1 again, and nobody reads their sums.
  __device__ __forceinline__ void run(const unsigned short* x, int m, int k) {
    const int token = threadIdx.x % 32 / 8;
    const unsigned short* own = x + threadIdx.x % 8 * 16;
    int left = ceil_div(groups() * kUnits - index_, kConverters);
    w4::Segment segment;
    schedule_.next(segment);
    int group = segment.begin, coming = index_;
    const auto load = [&](Inputs& inputs) {
#pragma unroll
      for (int i = 0; i < kMostStages; ++i) {
        if (coming < kUnits) continue;
        coming -= kUnits;
        if (++group < segment.end) continue;
        // Past the end the last group's inputs again, which nobody takes.
        if (schedule_.next(segment)) group = segment.begin; else --group;
      }
      load_inputs(inputs, own + (min(4 * coming + token, m - 1) * k + group * 128));
      coming += kConverters;
    };
    wait_for_predecessors();
    Inputs inputs[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) load(inputs[i]);
    Ring ring;
    int unit = index_;
    while (true) {
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (left-- <= 0) return;
#pragma unroll
        for (int j = 0; j < kMostStages; ++j) {
          if (unit < kUnits) continue;
          unit -= kUnits;
          ring.advance();
        }
        const Integers integers = integers_of(inputs[i]);
        load(inputs[i]);
        barrier_wait(empty_ + 8 * ring.stage, ring.parity ^ 1);
        store(integers, ring.stage, unit);
        __syncwarp();
        if (threadIdx.x % 32 == 0) barrier_arrive(full_ + 8 * ring.stage);
        unit += kConverters;
      }
    }
  }

 private:
  static constexpr int kAhead = 3;  // units whose inputs are under way
  static constexpr int kMostStages = (kUnits - 1 + kConverters) / kUnits;  // to a warp's next unit

  // Of the worker.
  __device__ __forceinline__ int groups() const {
    w4::Schedule schedule = schedule_;
    w4::Segment segment;
    int count = 0;
    while (schedule.next(segment)) count += segment.end - segment.begin;
    return count;
  }

  __device__ __forceinline__ static int ceil_div(int number, int divisor) {
    return (number + divisor - 1) / divisor;
  }

  __device__ __forceinline__ static void load_inputs(Inputs& inputs, const unsigned short* from) {
    const uint4 first = load_global(from), second = load_global(from + 8);
    const u32 words[8] = {first.x,  first.y,  first.z,  first.w,
                          second.x, second.y, second.z, second.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) inputs.pairs[i] = words[i];
  }

  __device__ __forceinline__ void store(const Integers& integers, int stage, u32 unit) const {
    const u32 row = (tokens_ ^ unit % 2 * 64) + stage * kTokenBytes + unit * 512;
    store_shared(row, integers.high);
    store_shared(row + kSliceBytes, integers.low);
    if (threadIdx.x % 8 == 0)
      store_shared(scales_ + stage * kScaleBytes + unit * 32, __float_as_uint(integers.scale),
                   static_cast<u32>(integers.minus_sum));
  }

  w4::Schedule schedule_;
  int index_;  // among the converters
  u32 full_, empty_;
  u32 tokens_, scales_;  // where this lane's chunk and its token's scale of stage 0 and unit 0 lie
};

}  // namespace w4_prefill
