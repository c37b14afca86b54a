// w4_linear for bfloat16 activations with AVX512-BF16: two inputs of sixteen rows at a time.
//
// Codes 0 ... 15 are exact in bfloat16, and so is each product in float32: nothing is rounded that
// the float32 variants would keep, except that the processor takes subnormals for zero.
#include "avx512_vector.h"
#include "w4_linear_chunk.h"

namespace awqkit {
namespace {

alignas(64) constexpr uint16_t kBf16OfCode[32] = {
    0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, 0x4100, 0x4110, 0x4120,
    0x4130, 0x4140, 0x4150, 0x4160, 0x4170, 0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0,
    0x40c0, 0x40e0, 0x4100, 0x4110, 0x4120, 0x4130, 0x4140, 0x4150, 0x4160, 0x4170};

struct Avx512Bf16 : Avx512Vector {
    using Weights = __m512i;
    using Activation = uint32_t;  // bfloat16 of inputs 2i (low half) and 2i + 1 of a word
    static constexpr int kSteps = kCodesPerWord / 2;

    static void pack_activations(const float* row, uint32_t* packed) {
        for (int i = 0; i < kSumInputs / 2; ++i) {
            packed[i] = (bits_of_float(row[2 * i]) >> 16) |
                        (bits_of_float(row[2 * i + 1]) & 0xffff0000u);
        }
    }

    // After the shift each 16-bit half begins with its nibble. Of the half, the lookup reads five
    // bits: the table holds every code twice, so that the fifth does not matter.
    template <int kStep>
    struct Step {
        __m512i bf16_of_code = _mm512_load_si512(kBf16OfCode);

        AWQKIT_INLINE void keep_in_register() {}  // of 32 there are enough
        AWQKIT_INLINE Weights weights(Codes codes) const {
            const Codes nibbles = _mm512_srli_epi32(codes, kBits * kStep);
            return _mm512_permutexvar_epi16(nibbles, bf16_of_code);
        }
    };

    static AWQKIT_INLINE Codes broadcast(Activation x) { return _mm512_set1_epi32(int32_t(x)); }
    static AWQKIT_INLINE Vector multiply_add(Weights weights, Codes x, Vector sum) {
        return _mm512_dpbf16_ps(sum, (__m512bh)weights, (__m512bh)x);
    }
};

}  // namespace

void w4_linear_avx512_bf16(const W4Linear& call, Workspace& workspace, int64_t first,
                           int64_t last) {
    compute_items<Avx512Bf16>(call, workspace, first, last);
}

}  // namespace awqkit
