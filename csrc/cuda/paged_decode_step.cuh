// One step of a warp: kTokens tokens of one head, from their slots through scores and weights to the
// output.
#pragma once

#include "paged_decode_softmax.cuh"

namespace paged_decode {

// What a lane needs in every step.
struct LanePlace {
  KeyTile::Begin keys;
  u32 values, params;  // where it begins to read in a slot
  u32 first_stream;    // a mask: whether it has tokens of the first of two streams

  __device__ __forceinline__ explicit LanePlace(int lane)
      : keys(lane), values(ValueTile::begin(lane)),
        params(kParamOffset + 4 * (16 * token_tile(0, lane) + score_token(lane))),
        first_stream(lane < 16 ? ~0u : 0u) {
    keep(params);
    keep(first_stream);
  }
};

class Step {
 public:
  // slot: of the step, all of which is read after this.
  __device__ __forceinline__ void read(const Queries& queries, u32 slot, const LanePlace& place,
                                       int lane) {
    multiply_keys(queries, slot, place.keys, lane);
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) values_[t].read(slot, t, place.values);
#pragma unroll
    for (int s = 0; kQuantized && s < kScoreTiles; ++s) {
      const u32 params = slot + place.params + 64 * kStreams * s;
      take_params(key_params_[s], params);
      take_params(value_params_[s], params + kParamBytes);
    }
  }

  // Products become exponents, those of tokens out of sight minus infinity; the maximum follows.
  __device__ __forceinline__ void score(Softmax& softmax, const Queries& queries,
                                        const ScoreScale& scale, const Visible& visible, int lane) {
#pragma unroll
    for (int s = 0; s < kScoreTiles; ++s)
#pragma unroll
      for (int half = 0; half < 2; ++half) scale_products(s, half, queries, scale.factor);
    if (scale.cap != 0.0f) cap_scores(scale);
    if (!visible.whole) hide(visible, lane);
    softmax.follow(scores_);
  }

  __device__ __forceinline__ void attend(Softmax& softmax, const LanePlace& place) {
#pragma unroll
    for (int s = 0; s < kScoreTiles; ++s) {
      u32 weights[kHeadTiles][2];
      softmax.weigh(weights, scores_[s], value_params_[s]);
#pragma unroll
      for (int stream = 0; stream < kStreams; ++stream) {
        u32 b[kHeadTiles][2];
#pragma unroll
        for (int n = 0; n < kHeadTiles; ++n)
#pragma unroll
          for (int half = 0; half < 2; ++half)
            b[n][half] = kStreams == 1 ? weights[n][half]
                         : stream == 0 ? weights[n][half] & place.first_stream
                                       : weights[n][half] & ~place.first_stream;
        softmax.add(values_[kStreams * s + stream], b);
      }
    }
  }

 private:
  __device__ __forceinline__ void multiply_keys(const Queries& queries, u32 slot,
                                                const KeyTile::Begin& begin, int lane) {
    float products[kTokenTiles][kHeadTiles][4];
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) {
      KeyTile keys;
      keys.read(slot, t, begin);
      multiply_tile(products[t], queries, keys);
    }
    // All streams have the same queries: of each column the products with its own tokens count.
#pragma unroll
    for (int s = 0; s < kScoreTiles; ++s)
#pragma unroll
      for (int n = 0; n < kHeadTiles; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          scores_[s][n][e] = kStreams == 1    ? products[s][n][e]
                             : lane % 4 < 2 ? products[kStreams * s][n][e]
                                              : products[kStreams * s + kStreams - 1][n][e];
  }

  __device__ __forceinline__ static void multiply_tile(float (&products)[kHeadTiles][4],
                                                       const Queries& queries,
                                                       const KeyTile& keys) {
    float excess[kHeadTiles][4];  // that upper codes add to the products of the lower half
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) products[n][e] = excess[n][e] = 0.0f;
#pragma unroll
    for (int step = 0; step < kDimTiles; ++step) {
      u32 a[4];
      keys.operand(a, step);
#pragma unroll
      for (int n = 0; n < kHeadTiles; ++n) {
        multiply(products[n], a, queries.operand[n][step]);
        if (key_step_is_upper(step)) multiply(excess[n], a, queries.operand[n][step - 1]);
      }
    }
    if constexpr (kKeyBits == 4) {
#pragma unroll
      for (int n = 0; n < kHeadTiles; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) products[n][e] -= excess[n][e];
    }
  }

  // The products of token score_token + 8 · half become what ScoreScale takes.
  __device__ __forceinline__ void scale_products(int s, int half, const Queries& queries,
                                                 float factor) {
    float slope = factor, shift = 0.0f;
    if constexpr (kQuantized) {
      const float2 params = widen_half_pair(key_params_[s][half]);
      slope = factor * code_unit(false) * params.x;
      shift = factor * params.y;
    }
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& score = scores_[s][n][2 * half + i];
        score *= slope;
        if constexpr (kQuantized) score += shift * queries.sums[n][i];
      }
  }

  __device__ __forceinline__ void cap_scores(const ScoreScale& scale) {
#pragma unroll
    for (int s = 0; s < kScoreTiles; ++s)
#pragma unroll
      for (int n = 0; n < kHeadTiles; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) scores_[s][n][e] = scale.capped(scores_[s][n][e]);
  }

  // Scores out of sight, and whatever of their values might be no number, which a weight of zero would
  // not hide.
  __device__ __forceinline__ void hide(const Visible& visible, int lane) {
#pragma unroll
    for (int s = 0; s < kScoreTiles; ++s)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (visible.sees(16 * token_tile(s, lane) + 8 * half + score_token(lane))) continue;
        if constexpr (kQuantized) value_params_[s][half] = 0;
#pragma unroll
        for (int n = 0; n < kHeadTiles; ++n)
#pragma unroll
          for (int i = 0; i < 2; ++i) scores_[s][n][2 * half + i] = minus_infinity();
      }
#pragma unroll
    for (int t = 0; !kQuantized && t < kTokenTiles; ++t)
      values_[t].clear_outside(visible.begin - 16 * t, visible.end - 16 * t, lane);
  }

  u32 key_params_[kScoreTiles][2], value_params_[kScoreTiles][2];
  float scores_[kScoreTiles][kHeadTiles][4];
  ValueTile values_[kTokenTiles];
};

}  // namespace paged_decode
