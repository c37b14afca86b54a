// What the driver of w4_linear and its variants share.
//
// Packed weights. Sixteen output rows form a block. In a block, word 16 * i + r holds the codes of
// row r for inputs 8i ... 8i+7, nibble p that of input 8i + kAwqOrder[p]: one load brings the same
// inputs of neighbouring rows, and nibbles p and p + 4 hold neighbouring inputs. Each group of 128
// inputs of a block has kGroupParamBytes: 16 scales (float16), then 16 zeros (uint8).
#pragma once

#include <cstddef>
#include <cstdint>

#include "../layout.h"
#include "abi.h"

namespace awqkit {

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// One call. Its work is cut twice: tokens into chunks, blocks of rows into strips.
struct W4Linear {
    DType dtype;
    const void* x;
    const uint32_t* codes;
    const uint8_t* group_params;
    const void* bias;
    void* out;
    int64_t tokens;
    int64_t out_features;
    int64_t in_features;
    int64_t strip_blocks;

    int64_t groups() const { return in_features / kGroupSize; }
    int64_t blocks() const { return divide_up(out_features, kBlockRows); }
    int64_t strips() const { return divide_up(blocks(), strip_blocks); }
    int64_t chunks() const { return divide_up(tokens, chunk_tokens()); }
    int64_t items() const { return chunks() * strips(); }

    int64_t last_block(int64_t strip) const {
        return smaller((strip + 1) * strip_blocks, blocks());
    }
    int64_t words_per_block() const { return in_features / kCodesPerWord * kBlockRows; }
    int64_t params_per_block() const { return groups() * kGroupParamBytes; }

    // A chunk's activations are prepared once and then meet every strip: they stay in cache.
    int64_t chunk_tokens() const {
        constexpr int64_t kCacheBytes = 512 * 1024;
        constexpr int64_t kStep = 24;  // a multiple of every variant's tile
        const int64_t fitting = kCacheBytes / (int64_t(sizeof(float)) * in_features);
        return fitting < 2 * kStep ? kStep : 2 * kStep;
    }
    int64_t tokens_in_chunk(int64_t chunk) const {
        return smaller(chunk_tokens(), tokens - chunk * chunk_tokens());
    }
};

// Neighbouring activations whose sum is taken once, to subtract zeros with.
constexpr int kSumInputs = 32;

// One thread's prepared activations, valid for one chunk at a time.
struct Workspace {
    void* memory;
    int64_t chunk = -1;
};

inline size_t workspace_bytes(const W4Linear& call) {
    const int64_t floats = call.in_features + call.in_features / kSumInputs;
    return size_t(divide_up(call.tokens_in_chunk(0) * floats * int64_t(sizeof(float)), 64) * 64);
}

// Computes the items first ... last-1 of a call; item i is chunk i / strips, strip i % strips.
using W4LinearVariant = void (*)(const W4Linear& call, Workspace& workspace, int64_t first,
                                 int64_t last);

void w4_linear_scalar(const W4Linear& call, Workspace& workspace, int64_t first, int64_t last);
void w4_linear_avx2(const W4Linear& call, Workspace& workspace, int64_t first, int64_t last);
void w4_linear_avx512(const W4Linear& call, Workspace& workspace, int64_t first, int64_t last);
void w4_linear_avx512_bf16(const W4Linear& call, Workspace& workspace, int64_t first,
                           int64_t last);

}  // namespace awqkit
