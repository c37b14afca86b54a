// x as the warps of w4_chain.cu hold it, integers in registers, and what they make of it: the sums of
// one row tile and their way through shared memory.
#pragma once

#include "w4_decode_ptx.cuh"

#ifdef W4_TRACE
extern "C" { __device__ unsigned long long w4_trace[160 * W4_LINEARS * 32]; }
#endif

#ifdef W4_TRACE
__device__ __forceinline__ void stamp(int linear, int what) {
  unsigned long long t;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(t));
  w4_trace[(blockIdx.x * W4_LINEARS + linear) * 32 + what] = t;
}
#define STAMP(linear, what) stamp(linear, what)
#else
#define STAMP(linear, what)
#endif



namespace w4_chain {

using namespace w4_decode;

constexpr int kTokenTiles = W4_TOKEN_TILES;  // of 8 tokens
constexpr int kWarps = W4_WARPS;
constexpr int kWarpGroups = 32 / kWarps;  // groups of a warp in a row tile, kWarps apart
constexpr int kGroup = 128;
constexpr int kCodeBytes = 1024;   // of 16 rows and one group
constexpr int kScaleBytes = 64;    // of 16 rows and one group
constexpr int kStageGroups = kWarps * kWarpGroups;
constexpr int kPartialBytes = 512 * kTokenTiles;  // a warp's sums of a row tile: 16 rows x tokens
constexpr int kLinearBytes = 128;  // of a set, of each linear: tickets of up to 8 slices, a hint
constexpr u32 kMissing = 0xffffffffu;  // Bits that no sum has: a NaN is 0x7fff, 0x7fffffff.

// One linear of the chain; slices: blocks that share a row tile along K, each with its inputs.
// exchange, partials: where in a set of the workspace, in bytes.
struct Linear {
  const unsigned char* codes;
  const unsigned char* scales;
  const u16* bias;
  u16* y;
  int n, k, slices, exchange, partials;
};

// Of one block: its slice of a linear's groups, and its row tiles, every `step`-th from `first` on.
struct Share {
  int first_group, groups, slice;
  int first_tile, step, tiles;

  __device__ __forceinline__ explicit Share(const Linear& linear) {
    const int all = linear.k / kGroup, grid = gridDim.x;
    slice = blockIdx.x % linear.slices;
    first_group = all * slice / linear.slices;
    groups = all * (slice + 1) / linear.slices - first_group;
    first_tile = blockIdx.x / linear.slices;
    step = (grid - slice + linear.slices - 1) / linear.slices;
    tiles = (linear.n + 15) / 16;
  }
};

// c += a · b, a: u8, m16n8k32.
__device__ __forceinline__ void multiply_s8(int (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void multiply_u8(int (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Keeps what is worked out once in its register.
template <class T>
__device__ __forceinline__ void keep(T& value) {
  asm volatile("" : "+r"(value));
}

__device__ __forceinline__ u32 larger_halves(u32 a, u32 b) {
  u32 d;
  asm("max.u16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}

// What other blocks write meanwhile.
__device__ __forceinline__ uint4 load_now(const uint4* address) {
  uint4 v;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(address)
               : "memory");
  return v;
}

__device__ __forceinline__ bool complete(const uint4& v) {
  return v.x != kMissing && v.y != kMissing && v.z != kMissing && v.w != kMissing;
}

// Where others find input k, even, of a linear: so that a lane's operands for 32 inputs lie together.
__device__ __forceinline__ int place_of(int k) { return k / 32 * 32 + k % 8 * 4 + k % 32 / 8 * 2; }

// Of the rows of an exchange, in numbers.
__device__ __forceinline__ int exchange_stride(int n) { return (n + 31) / 32 * 32; }

// Lane c of four holds row c of a 4 x 4 matrix, and then column c.
__device__ __forceinline__ void transpose(u32 (&v)[4], int lane) {
#pragma unroll
  for (int bit = 1; bit <= 2; bit *= 2) {
    const bool upper = lane & bit;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i & bit) continue;
      const u32 got = __shfl_xor_sync(0xffffffffu, upper ? v[i] : v[i + bit], bit);
      if (upper)
        v[i] = got;
      else
        v[i + bit] = got;
    }
  }
}

// The lane's code words hold, in each byte, a row's code in the lower half and that of the row 8 further
// on in the upper half: masked, they are operands of the integer tensor cores, the latter sixteenfold.
// x becomes integers of 16 bits, in steps of 2^-15 of the largest power of two among a token's inputs
// of this warp, and they become two bytes each. So products and sums are exact:
// sum of (code - z) * x = 256 * (sum of code * high byte) + (sum of code * low byte) - z * (sum of x).
class StationaryX {
 public:
  // x [m, stride], in order or, where awaited, as place_of says. first: the warp's first group; the others follow kWarps apart, up to `end`.
  // kAwaited: other blocks are still writing x, whose pairs are kMissing until they are there.
  template <bool kAwaited>
  __device__ __forceinline__ void load(const u16* x, int m, int stride, int first, int end, int lane,
                                       int i) {
    u32 raw[kTokenTiles][kWarpGroups][4][4];
    fetch<kAwaited>(raw, x, m, stride, first, end, lane);
    if (threadIdx.x == 0) STAMP(i, 7);
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) convert<!kAwaited>(raw[t], t, lane);
  }

  // total += the products with group j of a row tile, rows 8 further on sixteenfold; words: the lane's
  // codes.
  __device__ __forceinline__ void add_group(float (&total)[kTokenTiles][4], int j,
                                            const uint4 (&words)[2], uint2 params) const {
    const u32 word[8] = {words[0].x, words[0].y, words[0].z, words[0].w,
                         words[1].x, words[1].y, words[1].z, words[1].w};
    const int zero[2] = {static_cast<int>(params.x >> 16 & 0xf),
                         static_cast<int>(params.y >> 12 & 0xf0)};
    const float scale[2] = {half_bits_to_float(params.x), half_bits_to_float(params.y)};
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) {
      int high[4] = {}, low[4] = {};
#pragma unroll
      for (int s = 0; s < 8; s += 2) {
        const u32 a[4] = {word[s] & 0x0f0f0f0fu, word[s] & 0xf0f0f0f0u, word[s + 1] & 0x0f0f0f0fu,
                          word[s + 1] & 0xf0f0f0f0u};
        multiply_s8(high, a, high_[t][j][s], high_[t][j][s + 1]);
        multiply_u8(low, a, low_[t][j][s], low_[t][j][s + 1]);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int exact = 256 * high[i] + low[i] + zero[i / 2] * minus_sum_[t][j][i % 2];
        total[t][i] += scale[i / 2] * static_cast<float>(exact);
      }
    }
  }

  // From integers' steps to numbers, once all groups of a row tile have been added.
  __device__ __forceinline__ void scale(float (&total)[kTokenTiles][4]) const {
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t)
#pragma unroll
      for (int i = 0; i < 4; ++i) total[t][i] *= i < 2 ? step_[t][i % 2] : 0.0625f * step_[t][i % 2];
  }

 private:
  template <bool kAwaited>
  static __device__ __forceinline__ void fetch(u32 (&raw)[kTokenTiles][kWarpGroups][4][4],
                                               const u16* x, int m, int stride, int first, int end,
                                               int lane) {
    const int token = lane / 4, column = lane % 4;
    const u16* source = x + static_cast<size_t>(token) * stride + first * kGroup + 8 * column;
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t)
#pragma unroll
      for (int j = 0; j < kWarpGroups; ++j)
#pragma unroll
        for (int q = 0; q < 4; ++q)
#pragma unroll
          for (int i = 0; i < 4; ++i) raw[t][j][q][i] = kAwaited ? kMissing : 0;
    bool all;
    do {
      all = true;
#pragma unroll
      for (int t = 0; t < kTokenTiles; ++t)
#pragma unroll
        for (int j = 0; j < kWarpGroups; ++j)
#pragma unroll
          for (int q = 0; q < 4; ++q) {
            u32(&r)[4] = raw[t][j][q];
            const bool there = 8 * t + token < m && first + j * kWarps < end;
            if (kAwaited && complete({r[0], r[1], r[2], r[3]})) continue;
            const uint4* at = reinterpret_cast<const uint4*>(
                source + static_cast<size_t>(8 * t) * stride + j * kWarps * kGroup + 32 * q);
            const uint4 v = !there ? uint4{} : kAwaited ? load_now(at) : __ldcg(at);
            r[0] = v.x, r[1] = v.y, r[2] = v.z, r[3] = v.w;
          }
      if (kAwaited)
#pragma unroll
        for (int t = 0; t < kTokenTiles; ++t)
#pragma unroll
          for (int j = 0; j < kWarpGroups; ++j)
#pragma unroll
            for (int q = 0; q < 4; ++q) {
              const u32(&r)[4] = raw[t][j][q];
              all &= complete({r[0], r[1], r[2], r[3]});
            }
    } while (kAwaited && !all);
    __syncwarp();
  }

  template <bool kInOrder>
  __device__ __forceinline__ void convert(u32 (&raw)[kWarpGroups][4][4], int t, int lane) {
    u32 most = 0;
#pragma unroll
    for (int j = 0; j < kWarpGroups; ++j)
#pragma unroll
      for (int q = 0; q < 4; ++q)
#pragma unroll
        for (int i = 0; i < 4; ++i) most = larger_halves(most, raw[j][q][i] & 0x7fff7fffu);
    most = max(most & 0xffffu, most >> 16);
    most = max(most, __shfl_xor_sync(0xffffffffu, most, 1));
    most = max(most, __shfl_xor_sync(0xffffffffu, most, 2));
    // From 15 on both powers are normal numbers.
    const u32 exponent = max(most >> 7, 15u);
    const float up = __uint_as_float(268u - exponent << 23);
    const u32 down = exponent == 255u ? 0x7fc00000u : exponent - 14u << 23;  // NaN stays NaN.
    step_[t][0] = __uint_as_float(__shfl_sync(0xffffffffu, down, lane % 4 * 8));
    step_[t][1] = __uint_as_float(__shfl_sync(0xffffffffu, down, lane % 4 * 8 + 4));

    const u32 ones[4] = {0x01010101u, 0x01010101u, 0x01010101u, 0x01010101u};
#pragma unroll
    for (int j = 0; j < kWarpGroups; ++j) {
      int high[4] = {}, low[4] = {};
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        u32(&v)[4] = raw[j][q];
        if (kInOrder) transpose(v, lane);
#pragma unroll
        for (int s = 0; s < 2; ++s)
          split(v[2 * s], v[2 * s + 1], up, high_[t][j][2 * q + s], low_[t][j][2 * q + s]);
        multiply_s8(high, ones, high_[t][j][2 * q], high_[t][j][2 * q + 1]);
        multiply_u8(low, ones, low_[t][j][2 * q], low_[t][j][2 * q + 1]);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        minus_sum_[t][j][i] = -(256 * high[i] + low[i]);
        keep(minus_sum_[t][j][i]);
      }
    }
  }

  // Bytes of four integers: in the order of a code word's bytes.
  static __device__ __forceinline__ void split(u32 first, u32 second, float up, u32& high, u32& low) {
    const u32 a = integer(first << 16, up), b = integer(second << 16, up);
    const u32 c = integer(first & 0xffff0000u, up), d = integer(second & 0xffff0000u, up);
    const u32 ab = __byte_perm(a, b, 0x5140), cd = __byte_perm(c, d, 0x5140);
    low = __byte_perm(ab, cd, 0x5410);
    high = __byte_perm(ab, cd, 0x7632);
  }

  // Its lower 16 bits: beyond 2^23 a float's last bit counts ones.
  static __device__ __forceinline__ u32 integer(u32 bits, float up) {
    return __float_as_uint(fmaf(__uint_as_float(bits), up, 0x1.8p23f));
  }

  u32 high_[kTokenTiles][kWarpGroups][8], low_[kTokenTiles][kWarpGroups][8];
  int minus_sum_[kTokenTiles][kWarpGroups][2];  // of a group's inputs, for tokens 2c and 2c + 1
  float step_[kTokenTiles][2];
};

}  // namespace w4_chain
