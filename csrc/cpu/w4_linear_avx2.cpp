// w4_linear with AVX2, FMA and F16C: eight rows in a vector, three instructions for eight weights.
#include <immintrin.h>

#include "nibbles_in_place.h"
#include "w4_linear_chunk.h"

namespace awqkit {
namespace {

struct Avx2 {
    using Vector = __m256;
    using Codes = __m256i;
    using Weights = __m256;
    using Activation = float;
    static constexpr int kLanes = 8;
    static constexpr int kSteps = kCodesPerWord;
    static constexpr int kMaxTokens = 6;
    // Eight accumulators hide the latency of a multiply_add; more than twelve would spill.
    static constexpr int blocks_of_tile(int tokens) { return tokens == 1 ? 4 : tokens == 2 ? 2 : 1; }

    static void pack_activations(const float* row, float* packed) { pack_shares(row, packed); }

    // What one step does to the codes of every vector in turn.
    template <int kStep>
    struct Step {
        Codes mask = _mm256_set1_epi32(mask_of(kStep));

        // Left to itself the compiler carries all masks through the loop, in memory, and loads
        // each again for every vector of a step.
        AWQKIT_INLINE void keep_in_register() { asm volatile("" : "+x"(mask)); }
        AWQKIT_INLINE Weights weights(Codes codes) const {
            const Codes nibble = is_topmost(kStep) ? _mm256_srli_epi32(codes, shift_of(kStep))
                                                   : _mm256_and_si256(codes, mask);
            return _mm256_cvtepi32_ps(nibble);
        }
    };

    static AWQKIT_INLINE Codes load_codes(const uint32_t* words) {
        return _mm256_load_si256(reinterpret_cast<const __m256i*>(words));
    }
    static AWQKIT_INLINE Vector broadcast(Activation x) { return _mm256_set1_ps(x); }
    static AWQKIT_INLINE Vector multiply_add(Weights weights, Vector x, Vector sum) {
        return _mm256_fmadd_ps(weights, x, sum);
    }
    static AWQKIT_INLINE Vector subtract_product(Vector a, Vector b, Vector sum) {
        return _mm256_fnmadd_ps(a, b, sum);
    }
    static AWQKIT_INLINE Vector scaled_add(Vector sum, Vector scale, Vector total) {
        return _mm256_fmadd_ps(sum, scale, total);
    }
    static AWQKIT_INLINE Vector zero() { return _mm256_setzero_ps(); }
    static AWQKIT_INLINE Vector fill(float value) { return _mm256_set1_ps(value); }
    static AWQKIT_INLINE Vector load(const float* values) { return _mm256_load_ps(values); }
    static AWQKIT_INLINE void store(float* values, Vector v) { _mm256_store_ps(values, v); }
    static AWQKIT_INLINE Vector load_halves(const uint8_t* bytes) {
        return _mm256_cvtph_ps(_mm_load_si128(reinterpret_cast<const __m128i*>(bytes)));
    }
    static AWQKIT_INLINE Vector load_bytes(const uint8_t* bytes) {
        const __m128i packed = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes));
        return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(packed));
    }
};

}  // namespace

void w4_linear_avx2(const W4Linear& call, Workspace& workspace, int64_t first, int64_t last) {
    compute_items<Avx2>(call, workspace, first, last);
}

}  // namespace awqkit
