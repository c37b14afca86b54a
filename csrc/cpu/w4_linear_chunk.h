// Prepares activations chunk by chunk and walks the tiles of a piece of work; see w4_linear_tile.h.
#pragma once

#include "w4_linear_tile.h"

namespace awqkit {
namespace {

// Tokens of a chunk in tiles of nearly equal size, none above Simd::kMaxTokens.
template <class Simd>
struct TokenTiles {
    int64_t tokens;
    int64_t count;

    explicit TokenTiles(int64_t chunk_tokens)
        : tokens(chunk_tokens), count((chunk_tokens + Simd::kMaxTokens - 1) / Simd::kMaxTokens) {}
    int64_t start(int64_t tile) const { return tokens * tile / count; }
    int size(int64_t tile) const { return int(start(tile + 1) - start(tile)); }
};

// A fixed order, so that every instruction set gets the same sum.
inline float sum_of(const float* row) {
    float lanes[8] = {};
    for (int i = 0; i < kSumInputs; i += 8) {
        for (int lane = 0; lane < 8; ++lane) lanes[lane] += row[i + lane];
    }
    return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) +
           ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

template <class Simd>
void prepare_token(const W4Linear& call, int64_t token, typename Simd::Activation* x, float* sums,
                   int stride) {
    constexpr int kActivations = kSumInputs / kCodesPerWord * Simd::kSteps;
    for (int64_t i = 0; i < call.in_features; i += kSumInputs) {
        float row[kSumInputs];
        typename Simd::Activation packed[kActivations];
        load_row(call.x, call.dtype, token * call.in_features + i, kSumInputs, row);
        *sums = sum_of(row);
        Simd::pack_activations(row, packed);
        for (int a = 0; a < kActivations; ++a) x[a * stride] = packed[a];
        x += kActivations * stride;
        sums += stride;
    }
}

template <class Simd>
struct Chunk {
    const W4Linear& call;
    int64_t first_token;
    TokenTiles<Simd> tiles;
    typename Simd::Activation* x;
    float* sums;

    Chunk(const W4Linear& w4_linear, Workspace& workspace, int64_t index)
        : call(w4_linear), first_token(index * call.chunk_tokens()),
          tiles(call.tokens_in_chunk(index)) {
        x = static_cast<typename Simd::Activation*>(workspace.memory);
        sums = reinterpret_cast<float*>(x + tiles.tokens * activations_per_token());
    }

    int64_t activations_per_token() const {
        return call.in_features / kCodesPerWord * Simd::kSteps;
    }
    int64_t sums_per_token() const { return call.in_features / kSumInputs; }

    void prepare() const {
        for (int64_t tile = 0; tile < tiles.count; ++tile) {
            const int64_t start = tiles.start(tile);
            for (int t = 0; t < tiles.size(tile); ++t) {
                prepare_token<Simd>(call, first_token + start + t,
                                    x + start * activations_per_token() + t,
                                    sums + start * sums_per_token() + t, tiles.size(tile));
            }
        }
    }

    void compute(int64_t first_block, int64_t last_block) const {
        for (int64_t tile = 0; tile < tiles.count; ++tile) {
            const int64_t start = tiles.start(tile);
            const TileInput<Simd> input{x + start * activations_per_token(),
                                        sums + start * sums_per_token()};
            compute_tile<Simd>(call, first_block, last_block, first_token + start,
                               tiles.size(tile), input);
        }
    }
};

template <class Simd>
void compute_items(const W4Linear& call, Workspace& workspace, int64_t first, int64_t last) {
    for (int64_t item = first; item < last; ++item) {
        const int64_t index = item / call.strips();
        const Chunk<Simd> chunk(call, workspace, index);
        if (workspace.chunk != index) {
            chunk.prepare();
            workspace.chunk = index;
        }
        const int64_t strip = item % call.strips();
        chunk.compute(strip * call.strip_blocks, call.last_block(strip));
    }
}

}  // namespace
}  // namespace awqkit
