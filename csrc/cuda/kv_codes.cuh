// A head's numbers as codes of 8 or 4 bits with one scale and one minimum, both FP16.
//
// The twin of cache/page_codec.py: 8 bits span minimum and maximum; 4 bits begin so, then take the
// line through the codes that loses least, and are chosen once more. Everything rounds as there,
// except that sums over a head are made in another order.
#pragma once
#include "fp16.cuh"
#include "kv_vector.cuh"

namespace awqkit {

constexpr float kLargestFp16 = 65504.0f;
// The smallest positive FP16, and what makes up for rounding the scale to FP16.
constexpr float kSmallestFp16 = 5.9604644775390625e-8f;
constexpr float kScaleMargin = 1.0009765625f;
// Scale and minimum of a vector that holds a NaN.
constexpr u32 kNoNumbers = 0x7e007e00u;

__device__ __forceinline__ float clamped(float number, float low, float high) {
  return fminf(fmaxf(number, low), high);
}

// x / divisor to nearest, as a division gives it (Markstein, IBM J. Res. Dev. 34, 1990): the inverse is
// 1 / divisor to nearest, and the remainder is exact while no product underflows. Quotients so small
// that one does are nothing beside the codes' half steps and kSmallestFp16.
__device__ __forceinline__ float quotient(float x, float divisor, float inverse) {
  const float near = __fmul_rn(x, inverse);
  return __fmaf_rn(__fmaf_rn(-near, divisor, x), inverse, near);
}

// x = code * scale + minimum, as FP16 holds both.
struct Line {
  float scale, minimum, inverse;

  __device__ __forceinline__ Line(float wanted_scale, float wanted_minimum)
      : scale(widen_fp16(fp16_bits(wanted_scale))),
        minimum(widen_fp16(fp16_bits(wanted_minimum))),
        inverse(__frcp_rn(scale)) {}

  __device__ __forceinline__ float code(float x, float top) const {
    return clamped(rintf(quotient(__fsub_rn(x, minimum), scale, inverse)), 0.0f, top);
  }
  __device__ __forceinline__ u32 bits() const {
    return u32(fp16_bits(scale)) | u32(fp16_bits(minimum)) << 16;
  }
};

__device__ __forceinline__ Line spanning_line(float low, float high, float top) {
  const float minimum = widen_fp16(fp16_bits(low));
  const float inverse_top = top == 255.0f ? 1.0f / 255.0f : 1.0f / 15.0f;
  const float step = quotient(__fsub_rn(high, minimum), top, inverse_top);
  const float scale = __fadd_rn(__fmul_rn(step, kScaleMargin), kSmallestFp16);
  return Line(clamped(scale, kSmallestFp16, kLargestFp16), minimum);
}

template <int kHeadDim>
struct HeadCodes {
  using Vector = HeadVector<kHeadDim>;
  using Layout = HeadLayout<kHeadDim>;
  static constexpr int kNumbers = Layout::kNumbers;
  // Numbers 0 ... 2^bits - 1, laid as the vector is.
  float code[kNumbers];
  u32 params;

  __device__ __forceinline__ HeadCodes(Vector vector, int bits) {
    bool nan = false;
    float low = kLargestFp16, high = -kLargestFp16;
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) {
      nan = nan || vector.number[i] != vector.number[i];
      vector.number[i] = clamped(vector.number[i], -kLargestFp16, kLargestFp16);
      low = fminf(low, vector.number[i]);
      high = fmaxf(high, vector.number[i]);
    }
    const float top = bits == 8 ? 255.0f : 15.0f;
    Line line = spanning_line(-Layout::max(-low), Layout::max(high), top);
    choose(vector, line, top);
    if (bits == 4) {
      line = fitted_line(vector, line.scale);
      choose(vector, line, top);
    }
    params = Layout::any(nan) ? kNoNumbers : line.bits();
  }

  // Every lane of the warp takes part; of heads that are not `active` nothing is written.
  __device__ __forceinline__ void store(unsigned char* to, int bits, bool active,
                                        int lane) const {
    if constexpr (Layout::kHalves) {
      if (active) store_fours(to, bits, lane);
    } else if (bits == 4) {
      store_pairs(to, active, lane);
    } else if (active) {
#pragma unroll
      for (int j = 0; j < Layout::kWords; ++j)
        *reinterpret_cast<u16*>(to + Layout::element(j, lane)) = u16(two(j, 0));
    }
  }

 private:
  __device__ __forceinline__ void choose(const Vector& vector, const Line& line, float top) {
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) code[i] = line.code(vector.number[i], top);
  }

  __device__ __forceinline__ Line fitted_line(const Vector& vector, float scale) const {
    float codes = 0.0f, numbers = 0.0f;
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) {
      codes += code[i];
      numbers += vector.number[i];
    }
    const float centre = mean_of(Layout::sum(codes));
    const float mean = mean_of(Layout::sum(numbers));
    float spread = 0.0f, product = 0.0f;
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) {
      const float offset = __fsub_rn(code[i], centre);
      spread = __fadd_rn(spread, __fmul_rn(offset, offset));
      product = __fadd_rn(product, __fmul_rn(offset, __fsub_rn(vector.number[i], mean)));
    }
    spread = Layout::sum(spread);
    product = Layout::sum(product);
    const float slope = spread > 0.0f ? __fdiv_rn(product, spread) : scale;
    const float fitted = clamped(slope, kSmallestFp16, kLargestFp16);
    const float stored = widen_fp16(fp16_bits(fitted));
    const float minimum = __fsub_rn(mean, __fmul_rn(centre, stored));
    return Line(fitted, clamped(minimum, -kLargestFp16, kLargestFp16));
  }

  // A power of two divides as its inverse multiplies.
  __device__ __forceinline__ static float mean_of(float sum) {
    return Layout::kHalves ? __fmul_rn(sum, 1.0f / kHeadDim) : __fdiv_rn(sum, kHeadDim);
  }

  // Codes of a word, in neighbouring bytes from bit `shift` on.
  __device__ __forceinline__ u32 two(int word, int shift) const {
    return u32(code[2 * word]) << shift | u32(code[2 * word + 1]) << (8 + shift);
  }

  // A lane's four codes of either half of the head; of 4 bits those of the second are the upper ones.
  __device__ __forceinline__ void store_fours(unsigned char* to, int bits, int lane) const {
    const int shift = bits == 8 ? 0 : 4;
    const u32 first = two(0, 0) | two(1, 0) << 16;
    const u32 second = two(2, shift) | two(3, shift) << 16;
    u32* fours = reinterpret_cast<u32*>(to) + lane;
    if (bits == 8) {
      fours[0] = first;
      fours[kHeadDim / 8] = second;
    } else {
      fours[0] = first | second;
    }
  }

  // Of a head of 96: byte i holds element i low and element i + 48 high, which is a word of the lane
  // eight farther on.
  __device__ __forceinline__ void store_pairs(unsigned char* to, bool active, int lane) const {
    const u32 near = __shfl_xor_sync(kWarp, two(1, 4), 8);
    const u32 far = __shfl_xor_sync(kWarp, two(2, 4), 8);
    if (!active) return;
    *reinterpret_cast<u16*>(to + 2 * lane) = u16(two(0, 0) | (lane < 8 ? near : far));
    if (lane < 8) *reinterpret_cast<u16*>(to + 32 + 2 * lane) = u16(two(1, 0) | far);
  }
};

}  // namespace awqkit
