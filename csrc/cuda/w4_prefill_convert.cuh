// Inputs become integers of 16 bits in the ring: warps of the producers, but those that fetch weights and
// tokens, rewrite the tokens of a stage where they lie, in the form that wgmma u8 x s8 takes.
//
// An input of a token and a group is i * scale, scale a power of two so large that the largest i has 15
// bits: what lies within a factor of 2^7 of the largest stays as it is. i = 256 * high + low, both s8. A
// stage then holds the tokens' high bytes, and their low bytes after them: 2 * kTokens rows of 128 inputs,
// each input 16s + 8h + 2c + p at byte 16s + 4c + 2p + h (a word of codes, masked, holds those of c), in
// the 128-byte swizzle.
#pragma once

#include "w4_prefill_tile.cuh"
#include "w4_schedule.cuh"

namespace w4_prefill {

constexpr int kQuads = 2;  // of tokens that a warp has at a time: two chains of instructions

// A lane's: 16 inputs of one token of every quad, in pairs of BF16.
struct Inputs {
  u32 pairs[kQuads][8];
};

// The same as integers, and what all of a token's have in common: scale and the negative sum of i.
struct Integers {
  u32 high[kQuads][4], low[kQuads][4];
  float scale[kQuads];
  int minus_sum[kQuads];
};

__device__ __forceinline__ u32 max_of_halves(u32 a, u32 b) {
  u32 most;
  asm("max.u16x2 %0, %1, %2;" : "=r"(most) : "r"(a), "r"(b));
  return most;
}

// The largest magnitude (bits of a BF16 number) of a token's inputs, which eight lanes hold.
__device__ __forceinline__ void largest_of(const Inputs& inputs, u32 (&largest)[kQuads]) {
  constexpr u32 kMagnitudes = 0x7fff7fffu;
#pragma unroll
  for (int quad = 0; quad < kQuads; ++quad) {
    largest[quad] = inputs.pairs[quad][0] & kMagnitudes;
#pragma unroll
    for (int i = 1; i < 8; ++i)
      largest[quad] = max_of_halves(largest[quad], inputs.pairs[quad][i] & kMagnitudes);
  }
#pragma unroll
  for (int lanes = 4; lanes > 0; lanes /= 2)
#pragma unroll
    for (int quad = 0; quad < kQuads; ++quad)
      largest[quad] =
          max_of_halves(largest[quad], __shfl_xor_sync(0xffffffffu, largest[quad], lanes));
#pragma unroll
  for (int quad = 0; quad < kQuads; ++quad)
    largest[quad] = max(largest[quad] & 0xffffu, largest[quad] >> 16);
}

// i + 128 in the low 16 bits: a float from 2^23 to 2^24 counts ones.
__device__ __forceinline__ u32 biased_integer(u32 float_bits, float factor) {
  return __float_as_uint(fmaf(__uint_as_float(float_bits), factor, 12582912.0f + 128.0f));
}

// A lane's share of the sum is left in minus_sum.
__device__ __forceinline__ void split(const u32 (&pairs)[8], float factor, u32 (&high)[4],
                                      u32 (&low)[4], int& minus_sum) {
  int high_sum = 0, low_sum = 0;
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    u32 both[2];  // bytes low, low, high, high: of halves 0 and 1
#pragma unroll
    for (int p = 0; p < 2; ++p) {
      u32 biased[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const u32 pair = pairs[4 * half + c];
        biased[half] = biased_integer(p == 0 ? pair << 16 : pair & 0xffff0000u, factor);
      }
      both[p] = __byte_perm(biased[0], biased[1], 0x5140);
    }
    low[c] = __byte_perm(both[0], both[1], 0x5410) ^ 0x80808080u;
    high[c] = __byte_perm(both[0], both[1], 0x7632);
    low_sum = __dp4a(static_cast<int>(low[c]), 0x01010101, low_sum);
    high_sum = __dp4a(static_cast<int>(high[c]), 0x01010101, high_sum);
  }
  minus_sum = -256 * high_sum - low_sum;
}

// Not a number and infinity make the token's scale not a number.
__device__ __forceinline__ Integers integers_of(const Inputs& inputs) {
  constexpr u32 kInfinity = 0x7f80u;
  u32 largest[kQuads];
  largest_of(inputs, largest);
  Integers result;
#pragma unroll
  for (int quad = 0; quad < kQuads; ++quad) {
    // 32640 = 255 * 2^7 has a high byte of 128: the largest mantissa counts as the next exponent.
    const u32 exponent = (largest[quad] + 1) >> 7;
    const u32 factor = min(268u - exponent, 253u);
    result.scale[quad] =
        __uint_as_float(largest[quad] >= kInfinity ? 0x7fc00000u : (254u - factor) << 23);
    split(inputs.pairs[quad], __uint_as_float(factor << 23), result.high[quad], result.low[quad],
          result.minus_sum[quad]);
  }
#pragma unroll
  for (int lanes = 4; lanes > 0; lanes /= 2)
#pragma unroll
    for (int quad = 0; quad < kQuads; ++quad)
      result.minus_sum[quad] += __shfl_xor_sync(0xffffffffu, result.minus_sum[quad], lanes);
  return result;
}

// One warp's share: of every kConverters units of 4 * kQuads tokens of a group one.
class Converter {
 public:
  __device__ __forceinline__ Converter(const Shared& shared, const w4::Problem& problem, int worker,
                                       int index)
      : left_((groups(problem, worker) * kUnits - index + kConverters - 1) / kConverters),
        unit_(index), raw_(kept(shared.raw)), full_(kept(shared.full)) {
    // In the swizzle chunk c of row r lies at c XOR r mod 8; the second quad has rows 4 to 7.
    const u32 token = threadIdx.x % 32 / 8, step = threadIdx.x % 8;
    from_ = kept(shared.tokens + step / 4 * kSliceBytes + token * 128 + (step % 4 * 2 ^ token) * 16);
    to_ = kept(shared.tokens + token * 128 + (step ^ token) * 16);
    scales_ = kept(shared.scales + token * 8);
  }

  __device__ __forceinline__ void run() {
    Ring ring;
    for (; left_ > 0; --left_) {
      ring.advance(unit_ / kUnits);
      unit_ %= kUnits;
      barrier_wait(raw_ + 8 * ring.stage, ring.parity);
#if !(W4_PROBE & 1)
      const Integers integers = integers_of(load(ring.stage));
      __syncwarp();  // All that the tokens' lanes are to overwrite is read.
      store(integers, ring.stage);
#endif
      fence_async_proxy();
      __syncwarp();
      if (threadIdx.x % 32 == 0) barrier_arrive(full_ + 8 * ring.stage);
      unit_ += kConverters;
    }
  }

 private:
  __device__ __forceinline__ static int groups(const w4::Problem& problem, int worker) {
    w4::Schedule schedule(problem, worker);
    w4::Segment segment;
    int count = 0;
    while (schedule.next(segment)) count += segment.end - segment.begin;
    return count;
  }

  __device__ __forceinline__ Inputs load(int stage) const {
    Inputs inputs;
#pragma unroll
    for (int quad = 0; quad < kQuads; ++quad) {
      const u32 from = (from_ ^ quad * 64) + quad * 512 + stage * kTokenBytes + unit_ * 1024;
      const uint4 first = load_shared(from), second = load_shared(from ^ 16);
      const u32 words[8] = {first.x,  first.y,  first.z,  first.w,
                            second.x, second.y, second.z, second.w};
#pragma unroll
      for (int i = 0; i < 8; ++i) inputs.pairs[quad][i] = words[i];
    }
    return inputs;
  }

  __device__ __forceinline__ void store(const Integers& integers, int stage) const {
#pragma unroll
    for (int quad = 0; quad < kQuads; ++quad) {
      const u32 to = (to_ ^ quad * 64) + quad * 512 + stage * kTokenBytes + unit_ * 1024;
      store_shared(to, integers.high[quad]);
      store_shared(to + kSliceBytes, integers.low[quad]);
      if (threadIdx.x % 8 == 0)
        store_shared(scales_ + stage * kScaleBytes + unit_ * 64 + quad * 32,
                     __float_as_uint(integers.scale[quad]),
                     static_cast<u32>(integers.minus_sum[quad]));
    }
  }

  int left_;   // units
  int unit_;   // of the stage
  u32 raw_, full_;
  u32 from_, to_, scales_;  // this lane's of stage 0, unit 0 and the first quad
};

}  // namespace w4_prefill
