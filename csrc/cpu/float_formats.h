// Conversions between float32 and the 16-bit formats, written so that compilers vectorise them.
//
// Everything here has internal linkage: these headers are compiled once per instruction set, and
// the linker must never merge one variant's function into another's.
#pragma once

#include <cstdint>
#include <cstring>

#include "abi.h"

namespace awqkit {
namespace {

inline float float_of_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline uint32_t bits_of_float(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float float_of_bf16(uint16_t half) { return float_of_bits(uint32_t(half) << 16); }

inline uint16_t bf16_of_float(float value) {
    const uint32_t bits = bits_of_float(value);
    const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);  // to nearest, ties to even
    return uint16_t((value != value ? bits | 0x400000u : rounded) >> 16);
}

inline float float_of_fp16(uint16_t half) {
    const uint32_t sign = uint32_t(half & 0x8000u) << 16;
    const uint32_t magnitude = half & 0x7fffu;
    const uint32_t special = magnitude >= 0x7c00u ? 0x7f800000u : 0u;  // infinity and NaN
    // Exponent and mantissa move into place; 2^112 corrects the bias, also of subnormals.
    const float scaled = float_of_bits(magnitude << 13) * float_of_bits(0x77800000u);
    return float_of_bits(sign | bits_of_float(scaled) | special);
}

inline uint16_t fp16_of_float(float value) {
    const uint32_t bits = bits_of_float(value);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    // Below 2^-14 the addition of 0.5 lets the float unit round to a multiple of 2^-24.
    const uint32_t subnormal = bits_of_float(float_of_bits(magnitude) + 0.5f) - 0x3f000000u;
    const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
    half = magnitude >= 0x477ff000u ? 0x7c00u : half;  // from 65520 up it rounds to infinity
    half = magnitude > 0x7f800000u ? 0x7e00u : half;
    return uint16_t(sign | half);
}

inline float load_element(const void* data, DType dtype, int64_t index) {
    switch (dtype) {
        case DType::kBFloat16: return float_of_bf16(static_cast<const uint16_t*>(data)[index]);
        case DType::kFloat16: return float_of_fp16(static_cast<const uint16_t*>(data)[index]);
        default: return static_cast<const float*>(data)[index];
    }
}

inline void load_row(const void* data, DType dtype, int64_t start, int64_t count, float* row) {
    if (dtype == DType::kFloat32) {
        std::memcpy(row, static_cast<const float*>(data) + start, sizeof(float) * size_t(count));
        return;
    }
    const uint16_t* halves = static_cast<const uint16_t*>(data) + start;
    if (dtype == DType::kBFloat16) {
        for (int64_t i = 0; i < count; ++i) row[i] = float_of_bf16(halves[i]);
    } else {
        for (int64_t i = 0; i < count; ++i) row[i] = float_of_fp16(halves[i]);
    }
}

inline void store_row(const float* row, int64_t count, void* data, DType dtype, int64_t start) {
    if (dtype == DType::kFloat32) {
        std::memcpy(static_cast<float*>(data) + start, row, sizeof(float) * size_t(count));
        return;
    }
    uint16_t* halves = static_cast<uint16_t*>(data) + start;
    if (dtype == DType::kBFloat16) {
        for (int64_t i = 0; i < count; ++i) halves[i] = bf16_of_float(row[i]);
    } else {
        for (int64_t i = 0; i < count; ++i) halves[i] = fp16_of_float(row[i]);
    }
}

}  // namespace
}  // namespace awqkit
