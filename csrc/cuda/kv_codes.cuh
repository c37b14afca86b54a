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

__device__ __forceinline__ float max_of_warp(float value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, distance));
  }
  return value;
}

// x = code * scale + minimum, as FP16 holds both.
struct Line {
  float scale, minimum;

  __device__ __forceinline__ Line(float wanted_scale, float wanted_minimum)
      : scale(widen_fp16(fp16_bits(wanted_scale))),
        minimum(widen_fp16(fp16_bits(wanted_minimum))) {}

  __device__ __forceinline__ float code(float x, float top) const {
    return clamped(rintf(__fdiv_rn(__fsub_rn(x, minimum), scale)), 0.0f, top);
  }
  __device__ __forceinline__ u32 bits() const {
    return u32(fp16_bits(scale)) | u32(fp16_bits(minimum)) << 16;
  }
};

__device__ __forceinline__ Line spanning_line(float low, float high, float top) {
  const float minimum = widen_fp16(fp16_bits(low));
  const float step = __fdiv_rn(__fsub_rn(high, minimum), top);
  const float scale = __fadd_rn(__fmul_rn(step, kScaleMargin), kSmallestFp16);
  return Line(clamped(scale, kSmallestFp16, kLargestFp16), minimum);
}

template <int kHeadDim>
struct HeadCodes {
  using Vector = HeadVector<kHeadDim>;
  static constexpr int kParts = Vector::kParts;
  // Numbers 0 ... 2^bits - 1, laid as the vector is.
  float code[kParts];
  u32 params;

  __device__ __forceinline__ HeadCodes(Vector vector, int bits) {
    bool nan = false;
    float low = kLargestFp16, high = -kLargestFp16;
#pragma unroll
    for (int m = 0; m < kParts; ++m) {
      nan = nan || vector.part[m] != vector.part[m];
      vector.part[m] = clamped(vector.part[m], -kLargestFp16, kLargestFp16);
      low = fminf(low, vector.part[m]);
      high = fmaxf(high, vector.part[m]);
    }
    const float top = bits == 8 ? 255.0f : 15.0f;
    Line line = spanning_line(-max_of_warp(-low), max_of_warp(high), top);
    choose(vector, line, top);
    if (bits == 4) {
      line = fitted_line(vector, line.scale);
      choose(vector, line, top);
    }
    params = __any_sync(0xffffffffu, nan) ? kNoNumbers : line.bits();
  }

  __device__ __forceinline__ void store(unsigned char* to, int bits, int lane) const {
    if (bits == 8) {
#pragma unroll
      for (int m = 0; m < kParts; ++m) to[lane + 32 * m] = static_cast<unsigned char>(code[m]);
    } else {
      store_pairs(to, lane);
    }
  }

 private:
  __device__ __forceinline__ void choose(const Vector& vector, const Line& line, float top) {
#pragma unroll
    for (int m = 0; m < kParts; ++m) code[m] = line.code(vector.part[m], top);
  }

  __device__ __forceinline__ Line fitted_line(const Vector& vector, float scale) const {
    float codes = 0.0f, numbers = 0.0f;
#pragma unroll
    for (int m = 0; m < kParts; ++m) {
      codes += code[m];
      numbers += vector.part[m];
    }
    const float centre = __fdiv_rn(sum_of_warp(codes), kHeadDim);
    const float mean = __fdiv_rn(sum_of_warp(numbers), kHeadDim);
    float spread = 0.0f, product = 0.0f;
#pragma unroll
    for (int m = 0; m < kParts; ++m) {
      const float offset = __fsub_rn(code[m], centre);
      spread = __fadd_rn(spread, __fmul_rn(offset, offset));
      product = __fadd_rn(product, __fmul_rn(offset, __fsub_rn(vector.part[m], mean)));
    }
    spread = sum_of_warp(spread);
    product = sum_of_warp(product);
    const float slope = spread > 0.0f ? __fdiv_rn(product, spread) : scale;
    const float fitted = clamped(slope, kSmallestFp16, kLargestFp16);
    const float stored = widen_fp16(fp16_bits(fitted));
    const float minimum = __fsub_rn(mean, __fmul_rn(centre, stored));
    return Line(fitted, clamped(minimum, -kLargestFp16, kLargestFp16));
  }

  // Byte i holds element i low and element i + kHeadDim/2 high.
  __device__ __forceinline__ void store_pairs(unsigned char* to, int lane) const {
    constexpr int kHalf = kParts / 2;
#pragma unroll
    for (int m = 0; m < kHalf; ++m) {
      to[lane + 32 * m] = static_cast<unsigned char>(u32(code[m]) | upper(m, lane) << 4);
    }
    if constexpr (kParts % 2 != 0) {
      const u32 high = upper(kHalf, lane);
      if (lane < 16) to[lane + 32 * kHalf] = static_cast<unsigned char>(u32(code[kHalf]) | high << 4);
    }
  }

  // Of element lane + 32 m + kHeadDim/2: where a lane has an odd number of parts it lies in the
  // other half of the warp.
  __device__ __forceinline__ u32 upper(int m, int lane) const {
    constexpr int kHalf = kParts / 2;
    if constexpr (kParts % 2 == 0) return u32(code[m + kHalf]);
    const float near = __shfl_xor_sync(0xffffffffu, code[m + kHalf], 16);
    const float far = __shfl_xor_sync(0xffffffffu, code[min(m + kHalf + 1, kParts - 1)], 16);
    return u32(lane < 16 ? near : far);
  }
};

}  // namespace awqkit
