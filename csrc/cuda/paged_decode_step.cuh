// One step of a warp: kTokens tokens of one head, from memory through scores and weights to the
// output. Registers are the only buffer: what a step has used up is loaded again at once for the
// next one, so that loads are under way while the rest of the step is computed.
#pragma once

#include "paged_decode_softmax.cuh"

namespace paged_decode {

class Step {
 public:
  __device__ __forceinline__ void load_keys(const PageRows& rows, int lane) {
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) keys_[t].load(tile_of(rows, t), lane);
  }

  __device__ __forceinline__ void load_values(const PageRows& rows, int lane) {
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) values_[t].load(tile_of(rows, t), lane);
  }

  // Keys are used up after this. The exponents of tokens out of sight are minus infinity.
  __device__ __forceinline__ void score(const Queries& queries, const ScoreScale& scale,
                                        const Visible& visible, int lane) {
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) {
#pragma unroll
      for (int n = 0; n < kHeadTiles; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) scores_[t][n][e] = 0.0f;
#pragma unroll
      for (int step = 0; step < kDimTiles; ++step) {
        u32 a[4];
        keys_[t].operand(a, step);
#pragma unroll
        for (int n = 0; n < kHeadTiles; ++n) multiply(scores_[t][n], a, queries.operand[n][step]);
      }
#pragma unroll
      for (int half = 0; half < 2; ++half)
        finish(t, half, queries, scale, visible.sees(16 * t + 8 * half + lane / 4));
    }
  }

  // Values are used up after this.
  __device__ __forceinline__ void attend(Softmax& softmax, const Visible& visible, int lane) {
    softmax.follow(scores_);
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) {
      float2 params[2] = {};
      if constexpr (kQuantized) {
#pragma unroll
        for (int half = 0; half < 2; ++half)
          if (visible.sees(16 * t + 8 * half + lane / 4))
            params[half] = widen_half_pair(values_[t].params[half]);
      }
      if (!visible.whole) values_[t].clear_outside(visible.begin - 16 * t, visible.end - 16 * t, lane);
      u32 b[kHeadTiles][2];
      softmax.weigh(b, scores_[t], params);
      softmax.add(values_[t], b);
    }
  }

 private:
  __device__ __forceinline__ static PageRows tile_of(const PageRows& rows, int t) {
    return {rows.keys + 16 * t * kKeyRow, rows.values + 16 * t * kValueRow,
            rows.key_params + 16 * t, rows.value_params + 16 * t};
  }

  // The products of token lane / 4 + 8 · half become exponents.
  __device__ __forceinline__ void finish(int t, int half, const Queries& queries,
                                         const ScoreScale& scale, bool seen) {
    float slope = scale.factor, shift = 0.0f;
    if constexpr (kQuantized) {
      const float2 params = widen_half_pair(keys_[t].params[half]);
      slope *= params.x;
      shift = scale.factor * (params.y - kKeyOffset * params.x);
    }
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& score = scores_[t][n][2 * half + i];
        score *= slope;
        if constexpr (kQuantized) score += shift * queries.sums[n][i];
        score = seen ? scale.exponent(score) : -INFINITY;
      }
  }

  KeyTile keys_[kTokenTiles];
  ValueTile values_[kTokenTiles];
  float scores_[kTokenTiles][kHeadTiles][4];
};

}  // namespace paged_decode
