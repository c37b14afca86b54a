// One head normed where asked and turned, from registers to registers.
//
// Within a head the pairs (i, i + rotary_dim/2) turn by the angles of its token; the rest of the
// head stays. cos and sin are FP32 with equal halves; rotary_dim is a multiple of 4. Rounds as
// rotary_turn.cuh does, but sums the squares of a head in another order.
//
// A turn fetches of a head what its lanes need (Fetched), and of a norm's weight just the same.
#pragma once
#include "head_layout.cuh"
#include "rotary_turn.cuh"

namespace awqkit {

// All of the head turns, and both ends of a pair are one lane's.
template <int kHeadDim>
struct WholeTurn {
  using Layout = HeadLayout<kHeadDim>;
  using Words = HeadWords<kHeadDim>;
  static constexpr int kPairs = Layout::kWords;
  struct Fetched {
    Words own;
  };
  float cos[kPairs], sin[kPairs];

  // cosines, sines: 16-byte aligned.
  __device__ __forceinline__ WholeTurn(const float* cosines, const float* sines, int rotary_dim,
                                       int lane) {
    const float4 c = *reinterpret_cast<const float4*>(cosines + Layout::element(0, lane));
    const float4 s = *reinterpret_cast<const float4*>(sines + Layout::element(0, lane));
    cos[0] = c.x, cos[1] = c.y, cos[2] = c.z, cos[3] = c.w;
    sin[0] = s.x, sin[1] = s.y, sin[2] = s.z, sin[3] = s.w;
  }

  __device__ __forceinline__ Fetched fetch(const u16* head, int lane) const {
    return {Words::load(head, lane)};
  }

  template <typename Norm>
  __device__ __forceinline__ Words turned(const Fetched& head, const Norm& norm) const {
    const float scale = norm.scale_of(head.own);
    Words out;
#pragma unroll
    for (int j = 0; j < kPairs / 2; ++j) {
      const int k = j + kPairs / 2;
      const float2 first = norm.apply(head.own, norm.weight.own, j, scale);
      const float2 second = norm.apply(head.own, norm.weight.own, k, scale);
      const float cx = cos[2 * j], sx = sin[2 * j], cy = cos[2 * j + 1], sy = sin[2 * j + 1];
      out.word[j] = narrow_two(turned_first(first.x, second.x, cx, sx),
                               turned_first(first.y, second.y, cy, sy));
      out.word[k] = narrow_two(turned_second(first.x, second.x, cx, sx),
                               turned_second(first.y, second.y, cy, sy));
    }
    return out;
  }
};

// Any part of the head turns. A lane fetches the other ends of its pairs as well.
template <int kHeadDim>
struct PartTurn {
  using Layout = HeadLayout<kHeadDim>;
  using Words = HeadWords<kHeadDim>;
  static constexpr int kWords = Layout::kWords;
  struct Fetched {
    Words own, other;
  };
  // From a word's numbers to the other ends of their pairs; 0: they do not turn.
  int distance[kWords];
  float2 cos[kWords], sin[kWords];

  __device__ __forceinline__ PartTurn(const float* cosines, const float* sines, int rotary_dim,
                                      int lane) {
    const int half = rotary_dim / 2;
#pragma unroll
    for (int j = 0; j < kWords; ++j) {
      const int i = Layout::element(j, lane);
      distance[j] = i < half ? half : i < 2 * half ? -half : 0;
      if (distance[j] == 0) continue;
      cos[j] = *reinterpret_cast<const float2*>(cosines + i);
      sin[j] = *reinterpret_cast<const float2*>(sines + i);
    }
  }

  __device__ __forceinline__ Fetched fetch(const u16* head, int lane) const {
    Fetched fetched{Words::load(head, lane), {}};
#pragma unroll
    for (int j = 0; j < kWords; ++j)
      fetched.other.word[j] =
          *reinterpret_cast<const u32*>(head + Layout::element(j, lane) + distance[j]);
    return fetched;
  }

  template <typename Norm>
  __device__ __forceinline__ Words turned(const Fetched& head, const Norm& norm) const {
    __syncwarp();  // Nobody writes in place before all have fetched.
    const float scale = norm.scale_of(head.own);
    Words out;
#pragma unroll
    for (int j = 0; j < kWords; ++j) {
      const float2 own = norm.apply(head.own, norm.weight.own, j, scale);
      const float2 other = norm.apply(head.other, norm.weight.other, j, scale);
      const float2 c = cos[j], s = sin[j];
      float2 y = own;
      if (distance[j] > 0)
        y = make_float2(turned_first(own.x, other.x, c.x, s.x),
                        turned_first(own.y, other.y, c.y, s.y));
      if (distance[j] < 0)
        y = make_float2(turned_second(other.x, own.x, c.x, s.x),
                        turned_second(other.y, own.y, c.y, s.y));
      out.word[j] = narrow_two(y.x, y.y);
    }
    return out;
  }
};

// The norm of heads of one kind: its lanes' share of the weight, fetched once.
template <int kHeadDim, typename Turn>
struct FetchedNorm {
  using Words = HeadWords<kHeadDim>;
  typename Turn::Fetched weight;
  HeadNorm norm;

  __device__ __forceinline__ FetchedNorm(const Turn& turn, const HeadNorm& norm, int lane)
      : norm(norm) {
    if (norm.weight != nullptr) weight = turn.fetch(norm.weight, lane);
  }

  // 1 / rms of a head.
  __device__ __forceinline__ float scale_of(const Words& head) const {
    if (norm.weight == nullptr) return 1.0f;
    float squares = 0.0f;
#pragma unroll
    for (int j = 0; j < HeadLayout<kHeadDim>::kWords; ++j) {
      const float2 two = widen_two(head.word[j]);
      squares += two.x * two.x + two.y * two.y;
    }
    return rsqrtf(HeadLayout<kHeadDim>::sum(squares) / kHeadDim + norm.eps);
  }

  __device__ __forceinline__ float2 apply(const Words& head, const Words& factors, int j,
                                          float scale) const {
    const float2 two = widen_two(head.word[j]);
    if (norm.weight == nullptr) return two;
    const float2 factor = widen_two(factors.word[j]);
    return make_float2(norm.apply(two.x, factor.x, scale), norm.apply(two.y, factor.y, scale));
  }
};

}  // namespace awqkit
