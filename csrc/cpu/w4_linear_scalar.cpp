// w4_linear in portable C++: runs everywhere, and the compiler may vectorise it over the rows.
#include "float_formats.h"
#include "w4_linear.h"

namespace awqkit {
namespace {

void add_word(const uint32_t* words, const float* x, const float* __restrict zeros,
              float* __restrict sums) {
    for (int p = 0; p < kCodesPerWord; ++p) {
        const float activation = x[kAwqOrder[p]];
        // Left whole, the loop over rows is what compilers vectorise.
#pragma GCC unroll 1
        for (int r = 0; r < kBlockRows; ++r) {
            const float code = float(int32_t((words[r] >> (kBits * p)) & uint32_t(kMaxCode)));
            sums[r] += (code - zeros[r]) * activation;
        }
    }
}

void add_group(const uint32_t* words, const uint8_t* params, const float* x, float* totals) {
    float zeros[kBlockRows];
    float sums[kBlockRows] = {};
    for (int r = 0; r < kBlockRows; ++r) zeros[r] = params[2 * kBlockRows + r];
    for (int i = 0; i < kGroupSize / kCodesPerWord; ++i) {
        add_word(words + i * kBlockRows, x + i * kCodesPerWord, zeros, sums);
    }
    for (int r = 0; r < kBlockRows; ++r) {
        totals[r] += sums[r] * load_element(params, DType::kFloat16, r);
    }
}

void one_row(const W4Linear& call, int64_t block, int64_t token, const float* x) {
    const uint32_t* words = call.codes + block * call.words_per_block();
    const uint8_t* params = call.group_params + block * call.params_per_block();
    float totals[kBlockRows] = {};
    for (int64_t group = 0; group < call.groups(); ++group) {
        add_group(words, params, x + group * kGroupSize, totals);
        words += kGroupSize / kCodesPerWord * kBlockRows;
        params += kGroupParamBytes;
    }
    const int rows = int(smaller(kBlockRows, call.out_features - block * kBlockRows));
    for (int r = 0; call.bias != nullptr && r < rows; ++r) {
        totals[r] += load_element(call.bias, call.dtype, block * kBlockRows + r);
    }
    store_row(totals, rows, call.out, call.dtype,
              token * call.out_features + block * kBlockRows);
}

}  // namespace

void w4_linear_scalar(const W4Linear& call, Workspace& workspace, int64_t first, int64_t last) {
    float* x = static_cast<float*>(workspace.memory);
    for (int64_t item = first; item < last; ++item) {
        const int64_t chunk = item / call.strips();
        const int64_t start = chunk * call.chunk_tokens();
        const int64_t tokens = call.tokens_in_chunk(chunk);
        if (workspace.chunk != chunk) {
            load_row(call.x, call.dtype, start * call.in_features, tokens * call.in_features, x);
            workspace.chunk = chunk;
        }
        const int64_t strip = item % call.strips();
        for (int64_t block = strip * call.strip_blocks; block < call.last_block(strip); ++block) {
            for (int64_t t = 0; t < tokens; ++t) {
                one_row(call, block, start + t, x + t * call.in_features);
            }
        }
    }
}

}  // namespace awqkit
