// w4_linear with AVX-512F/BW/VL: sixteen rows in a vector, three instructions for sixteen weights.
#include "avx512_vector.h"
#include "nibbles_in_place.h"
#include "w4_linear_chunk.h"

namespace awqkit {
namespace {

struct Avx512 : Avx512Vector {
    using Weights = __m512;
    using Activation = float;
    static constexpr int kSteps = kCodesPerWord;

    static void pack_activations(const float* row, float* packed) { pack_shares(row, packed); }

    template <int kStep>
    struct Step {
        Codes mask = _mm512_set1_epi32(mask_of(kStep));

        AWQKIT_INLINE void keep_in_register() {}  // of 32 there are enough
        AWQKIT_INLINE Weights weights(Codes codes) const {
            const Codes nibble = is_topmost(kStep) ? _mm512_srli_epi32(codes, shift_of(kStep))
                                                   : _mm512_and_si512(codes, mask);
            return _mm512_cvtepi32_ps(nibble);
        }
    };

    static AWQKIT_INLINE Vector broadcast(Activation x) { return _mm512_set1_ps(x); }
    static AWQKIT_INLINE Vector multiply_add(Weights weights, Vector x, Vector sum) {
        return _mm512_fmadd_ps(weights, x, sum);
    }
};

}  // namespace

void w4_linear_avx512(const W4Linear& call, Workspace& workspace, int64_t first, int64_t last) {
    compute_items<Avx512>(call, workspace, first, last);
}

}  // namespace awqkit
