// One step of a warp: kTokens tokens of one head, from their slots through scores and weights to the
// output.
#pragma once

#include "paged_decode_softmax.cuh"

namespace paged_decode {

class Step {
 public:
  __device__ __forceinline__ void multiply_keys(const Queries& queries, u32 slot, int lane) {
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) {
      KeyTile keys;
      keys.read(slot, t, lane);
      float excess[kHeadTiles][4];  // that upper codes add to the products of the lower half
#pragma unroll
      for (int n = 0; n < kHeadTiles; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) scores_[t][n][e] = excess[n][e] = 0.0f;
#pragma unroll
      for (int step = 0; step < kDimTiles; ++step) {
        u32 a[4];
        keys.operand(a, step);
#pragma unroll
        for (int n = 0; n < kHeadTiles; ++n) {
          multiply(scores_[t][n], a, queries.operand[n][step]);
          if (key_step_is_upper(step)) multiply(excess[n], a, queries.operand[n][step - 1]);
        }
      }
      if constexpr (kKeyBits == 4) {
#pragma unroll
        for (int n = 0; n < kHeadTiles; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) scores_[t][n][e] -= excess[n][e];
      }
      if constexpr (kQuantized) {
#pragma unroll
        for (int half = 0; half < 2; ++half) key_params_[t][half] = keys.params[half];
      }
    }
  }

  // Products become exponents, those of tokens out of sight minus infinity; the maximum follows.
  __device__ __forceinline__ void score(Softmax& softmax, const Queries& queries,
                                        const ScoreScale& scale, const Visible& visible, int lane) {
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t)
#pragma unroll
      for (int half = 0; half < 2; ++half) scale_products(t, half, queries, scale.factor);
    if (scale.cap != 0.0f) cap_scores(scale);
    if (!visible.whole) hide_scores(visible, lane);
    softmax.follow(scores_);
  }

  // After this the slot is read.
  __device__ __forceinline__ void read_values(u32 slot, int lane) {
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) {
      values_[t].read_params(slot, t, lane);
      values_[t].read(slot, t, lane);
    }
  }

  __device__ __forceinline__ void attend(Softmax& softmax, const Visible& visible, int lane) {
    // All of a step at once: without a branch between them, tiles overlap.
    if (!visible.whole) {
#pragma unroll
      for (int t = 0; t < kTokenTiles; ++t)
        values_[t].clear_outside(visible.begin - 16 * t, visible.end - 16 * t, lane);
    }
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) {
      u32 b[kHeadTiles][2];
      softmax.weigh(b, scores_[t], values_[t].params);
      softmax.add(values_[t], b);
    }
  }

 private:
  // The products of token score_token + 8 · half become what ScoreScale takes.
  __device__ __forceinline__ void scale_products(int t, int half, const Queries& queries,
                                                 float factor) {
    float slope = factor, shift = 0.0f;
    if constexpr (kQuantized) {
      const float2 params = widen_half_pair(key_params_[t][half]);
      slope = factor * code_unit(false) * params.x;
      shift = factor * params.y;
    }
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& score = scores_[t][n][2 * half + i];
        score *= slope;
        if constexpr (kQuantized) score += shift * queries.sums[n][i];
      }
  }

  __device__ __forceinline__ void cap_scores(const ScoreScale& scale) {
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t)
#pragma unroll
      for (int n = 0; n < kHeadTiles; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) scores_[t][n][e] = scale.capped(scores_[t][n][e]);
  }

  __device__ __forceinline__ void hide_scores(const Visible& visible, int lane) {
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t)
#pragma unroll
      for (int n = 0; n < kHeadTiles; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          if (!visible.sees(16 * t + e / 2 * 8 + score_token(lane))) scores_[t][n][e] = minus_infinity();
  }

  u32 key_params_[kTokenTiles][2];  // of the keys that the scores come from
  float scores_[kTokenTiles][kHeadTiles][4];
  ValueTile values_[kTokenTiles];
};

}  // namespace paged_decode
