// What both AVX-512 variants share: a block's sixteen rows in one vector of float32.
#pragma once

#include <immintrin.h>

#include "w4_linear_tile.h"

namespace awqkit {
namespace {

struct Avx512Vector {
    using Vector = __m512;
    using Codes = __m512i;
    static constexpr int kLanes = 16;
    static constexpr int kMaxTokens = 8;
    // At most sixteen accumulators, and at least four even for a single token.
    static constexpr int blocks_of_tile(int tokens) { return tokens <= 4 ? 4 : 2; }

    static AWQKIT_INLINE Codes load_codes(const uint32_t* words) {
        return _mm512_load_si512(words);
    }
    static AWQKIT_INLINE Vector subtract_product(Vector a, Vector b, Vector sum) {
        return _mm512_fnmadd_ps(a, b, sum);
    }
    static AWQKIT_INLINE Vector scaled_add(Vector sum, Vector scale, Vector total) {
        return _mm512_fmadd_ps(sum, scale, total);
    }
    static AWQKIT_INLINE Vector zero() { return _mm512_setzero_ps(); }
    static AWQKIT_INLINE Vector fill(float value) { return _mm512_set1_ps(value); }
    static AWQKIT_INLINE Vector load(const float* values) { return _mm512_load_ps(values); }
    static AWQKIT_INLINE void store(float* values, Vector v) { _mm512_store_ps(values, v); }
    static AWQKIT_INLINE Vector load_halves(const uint8_t* bytes) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes)));
    }
    static AWQKIT_INLINE Vector load_bytes(const uint8_t* bytes) {
        const __m128i packed = _mm_load_si128(reinterpret_cast<const __m128i*>(bytes));
        return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(packed));
    }
};

}  // namespace
}  // namespace awqkit
