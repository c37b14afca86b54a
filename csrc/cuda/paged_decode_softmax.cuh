// The running softmax of one head group over the tokens that a warp has seen (Milakov and
// Gimelshein 2018), and what it weighs.
//
// With x = code · scale + minimum a key's score is scale · (code · q) + minimum · Σq, and a value's
// share p · x is (p · scale) · code + p · minimum: the tensor cores see codes and weights alone,
// scales and minima are applied in FP32. Rounding p · scale to BF16 costs least where codes are small,
// so what it adds to their middle is taken back.
//
// Weights are relative to a maximum that may lie up to kSlack (in powers of two) below the true one:
// then it hardly ever rises, and a step needs no reduction over its tokens.
#pragma once

#include "paged_decode_keys.cuh"
#include "paged_decode_values.cuh"

namespace paged_decode {

constexpr float kSlack = 8.0f;
constexpr float kLowest = -1e30f;  // below all scores, and a stream may see none

// How a product becomes the exponent (to base two) of a weight: times factor = scale · log2(e), or,
// where scores are capped, cap · log2(e) · tanh(product · scale / cap).
struct ScoreScale {
  float factor;
  float cap;  // times log2(e), or 0. factor is then 2 · log2(e) · scale / cap, for tanh's e^(2x).

  __device__ __forceinline__ float capped(float product) const {
    return cap - cap * __fdividef(2.0f, 1.0f + power_of_two(product));
  }
};

// Tokens [begin, end) of a step that the row sees, counted from the step's first. `whole`: all.
struct Visible {
  int begin, end;
  bool whole;

  __device__ __forceinline__ bool sees(int token) const { return token >= begin && token < end; }
};

__device__ __forceinline__ float of_other_stream(float value) {
  return __shfl_xor_sync(kAll, value, 2);
}

// A lane has the columns 2c and 2c + 1 of head tile n where c = lane % 4, as i = 0 and 1. Column k is head
// 8n + k. Where a key-value head has so few heads that a tile holds them twice (two streams), columns 4
// to 7 are the same heads over other tokens, of every second tile: half as many scores to work on.
struct Softmax {
  float out[kHeadTiles][kDimTiles][4];  // [dim 2 · (lane / 4) of the tile and the next one][head]
  float maximum[kHeadTiles][2];
  float sum[kHeadTiles][2];     // of the lane's own tokens, until they are gathered
  float offset[kHeadTiles][2];  // likewise: Σ p · minimum, which every dimension gets

  __device__ __forceinline__ void reset() {
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        maximum[n][i] = kLowest;
        sum[n][i] = offset[n][i] = 0.0f;
      }
#pragma unroll
      for (int j = 0; j < kDimTiles; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) out[n][j][e] = 0.0f;
    }
  }

  // The maximum rises where a score of this step lies far above it.
  __device__ __forceinline__ void follow(const float (&scores)[kScoreTiles][kHeadTiles][4]) {
    float highest[kHeadTiles][2];
    bool far = false;
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        highest[n][i] = fmaxf(scores[0][n][i], scores[0][n][2 + i]);
#pragma unroll
        for (int t = 1; t < kScoreTiles; ++t)
          highest[n][i] = fmaxf(highest[n][i], fmaxf(scores[t][n][i], scores[t][n][2 + i]));
        far |= highest[n][i] > maximum[n][i] + kSlack;
      }
    if (__any_sync(kAll, far)) raise(highest);
  }

  // Scores of tile t become weights; what they mean for its values is the products' operand b.
  __device__ __forceinline__ void weigh(u32 (&b)[kHeadTiles][2], const float (&scores)[kHeadTiles][4],
                                        const u32 (&param_pairs)[2]) {
    float2 params[2];
#pragma unroll
    for (int half = 0; half < 2; ++half)
      if constexpr (kQuantized) params[half] = widen_half_pair(param_pairs[half]);
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float weight[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          weight[i] = power_of_two(scores[n][2 * half + i] - maximum[n][i]);
          sum[n][i] += weight[i];
          if constexpr (kQuantized) {
            offset[n][i] += weight[i] * (params[half].y + kValueCentre * params[half].x);
            weight[i] *= params[half].x * two_to(kRaise);
          }
        }
        const u32 pair = pack_bf16(weight[0], weight[1]);
        if constexpr (kQuantized) {
          offset[n][0] -= __uint_as_float(pair << 16) * (kValueCentre * two_to(-kRaise));
          offset[n][1] -= __uint_as_float(pair & 0xffff0000u) * (kValueCentre * two_to(-kRaise));
        }
        b[n][half] = transposed(pair);
      }
  }

  __device__ __forceinline__ void add(const ValueTile& values, const u32 (&b)[kHeadTiles][2]) {
#pragma unroll
    for (int j = 0; j < kDimTiles; ++j) {
      u32 a[4];
      values.operand(a, j);
#pragma unroll
      for (int n = 0; n < kHeadTiles; ++n) multiply(out[n][j], a, b[n]);
    }
  }

  // What the tile's heads have is weighed against a maximum that is not below theirs.
  __device__ __forceinline__ void lower(int n, const float (&top)[2]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float factor = power_of_two(maximum[n][i] - top[i]);
      maximum[n][i] = top[i];
      sum[n][i] *= factor;
      offset[n][i] *= factor;
#pragma unroll
      for (int j = 0; j < kDimTiles; ++j) {
        out[n][j][i] *= factor;
        out[n][j][2 + i] *= factor;
      }
    }
  }

  // All lanes of a column get the sum over its tokens; outputs get their unit and their offset.
  __device__ __forceinline__ void gather() {
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int distance = 4; distance < 32; distance *= 2) {
          sum[n][i] += __shfl_xor_sync(kAll, sum[n][i], distance);
          if constexpr (kQuantized)
            offset[n][i] += __shfl_xor_sync(kAll, offset[n][i], distance);
        }
#pragma unroll
        for (int j = 0; kQuantized && j < kDimTiles; ++j)
#pragma unroll
          for (int e = i; e < 4; e += 2) {
            if constexpr (kValueBits == 4) {
              if (!value_tile_is_upper(j)) out[n][j][e] -= out[n][j + kDimTiles / 2][e];
            }
            out[n][j][e] = out[n][j][e] * code_unit(value_tile_is_upper(j)) + offset[n][i];
          }
      }
  }

 private:
  __device__ __forceinline__ void raise(float (&highest)[kHeadTiles][2]) {
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float top = fmaxf(highest[n][i], maximum[n][i]);
#pragma unroll
        for (int distance = 4; distance < 32; distance *= 2)
          top = fmaxf(top, __shfl_xor_sync(kAll, top, distance));
        highest[n][i] = top;
      }
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n) lower(n, highest[n]);
  }
};

}  // namespace paged_decode
