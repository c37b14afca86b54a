// The vector form of w4_linear, written once over a description `Simd` of an instruction set.
//
// A register tile is kBlocks weight blocks by kTokens tokens. Within a group the accumulators hold
// sum(code * x) with codes still unsigned; before every kSumInputs inputs zero * sum(x) is taken
// off, often enough that the two never grow far apart and cancel badly. A group ends with its
// scale. Every output sees the same operations in the same order whatever tile it falls into: a
// token's result depends neither on the tokens that come with it nor on the number of threads.
//
// Simd gives the types Vector (kLanes floats), Codes, Weights and Activation; the numbers kLanes,
// kSteps (multiply_add per packed word), kMaxTokens and blocks_of_tile(tokens), which keep a tile
// in registers; and the functions used below.
#pragma once

#include "float_formats.h"
#include "w4_linear.h"

#define AWQKIT_INLINE inline __attribute__((always_inline))
#define AWQKIT_UNROLL _Pragma("GCC unroll 16")

namespace awqkit {
namespace {

constexpr int kWordsPerGroup = kGroupSize / kCodesPerWord;
constexpr int kWordsPerSum = kSumInputs / kCodesPerWord;
constexpr int kSumsPerGroup = kGroupSize / kSumInputs;

// The prepared activations of one tile of tokens, token by token within each step.
template <class Simd>
struct TileInput {
    const typename Simd::Activation* x;  // [in_features / 8 * kSteps][tokens]
    const float* sums;                   // [in_features / kSumInputs][tokens]
};

template <class Simd, int kBlocks, int kTokens>
struct Tile {
    using Vector = typename Simd::Vector;
    using Activation = typename Simd::Activation;
    static constexpr int kVectorsPerBlock = kBlockRows / Simd::kLanes;
    static constexpr int kVectors = kBlocks * kVectorsPerBlock;
    using Sums = Vector[kVectors][kTokens];

    // Of the two orders, the one that keeps fewer operands in registers beside the sums.
    template <int kStep>
    static AWQKIT_INLINE void step_by_vector(const typename Simd::Codes (&codes)[kVectors],
                                             const Activation* x, Sums& sums) {
        typename Simd::template Step<kStep> step;
        if constexpr (kTokens == 1) step.keep_in_register();  // where loads are the limit
        AWQKIT_UNROLL for (int v = 0; v < kVectors; ++v) {
            const auto weights = step.weights(codes[v]);
            AWQKIT_UNROLL for (int t = 0; t < kTokens; ++t) {
                sums[v][t] = Simd::multiply_add(weights, Simd::broadcast(x[t]), sums[v][t]);
            }
        }
    }

    template <int kStep>
    static AWQKIT_INLINE void step_by_token(const typename Simd::Codes (&codes)[kVectors],
                                            const Activation* x, Sums& sums) {
        const typename Simd::template Step<kStep> step;
        typename Simd::Weights weights[kVectors];
        AWQKIT_UNROLL for (int v = 0; v < kVectors; ++v) weights[v] = step.weights(codes[v]);
        AWQKIT_UNROLL for (int t = 0; t < kTokens; ++t) {
            const auto activation = Simd::broadcast(x[t]);
            AWQKIT_UNROLL for (int v = 0; v < kVectors; ++v) {
                sums[v][t] = Simd::multiply_add(weights[v], activation, sums[v][t]);
            }
        }
    }

    template <int kStep>
    static AWQKIT_INLINE void add_steps(const typename Simd::Codes (&codes)[kVectors],
                                        const Activation* x, Sums& sums) {
        if constexpr (kStep < Simd::kSteps) {
            if constexpr (kVectors > kTokens) {
                step_by_vector<kStep>(codes, x + kStep * kTokens, sums);
            } else {
                step_by_token<kStep>(codes, x + kStep * kTokens, sums);
            }
            add_steps<kStep + 1>(codes, x, sums);
        }
    }

    static AWQKIT_INLINE void add_group(const uint32_t* words, int64_t block_stride,
                                        const float* zeros, TileInput<Simd> input, Sums& sums) {
        AWQKIT_UNROLL for (int v = 0; v < kVectors; ++v) {
            AWQKIT_UNROLL for (int t = 0; t < kTokens; ++t) sums[v][t] = Simd::zero();
        }
        for (int part = 0; part < kSumsPerGroup; ++part) {
            AWQKIT_UNROLL for (int t = 0; t < kTokens; ++t) {
                const Vector x_sum = Simd::fill(input.sums[t]);
                AWQKIT_UNROLL for (int v = 0; v < kVectors; ++v) {
                    const Vector zero = Simd::load(zeros + v * Simd::kLanes);
                    sums[v][t] = Simd::subtract_product(zero, x_sum, sums[v][t]);
                }
            }
            for (int w = 0; w < kWordsPerSum; ++w) {
                typename Simd::Codes codes[kVectors];
                AWQKIT_UNROLL for (int v = 0; v < kVectors; ++v) {
                    codes[v] = Simd::load_codes(words + v / kVectorsPerBlock * block_stride +
                                                v % kVectorsPerBlock * Simd::kLanes);
                }
                add_steps<0>(codes, input.x, sums);
                words += kBlockRows;
                input.x += Simd::kSteps * kTokens;
            }
            input.sums += kTokens;
        }
    }

    // Adds to totals, [kTokens][kBlocks * kBlockRows].
    static AWQKIT_INLINE void add_all_groups(const W4Linear& call, int64_t block,
                                             TileInput<Simd> input, float* totals) {
        const int64_t words_stride = call.words_per_block();
        const int64_t params_stride = call.params_per_block();
        const uint32_t* words = call.codes + block * words_stride;
        const uint8_t* params = call.group_params + block * params_stride;
        for (int64_t group = 0; group < call.groups(); ++group) {
            alignas(64) float zeros[kVectors * Simd::kLanes];
            Sums sums;
            AWQKIT_UNROLL for (int v = 0; v < kVectors; ++v) {
                const uint8_t* bytes = params + v / kVectorsPerBlock * params_stride +
                                       2 * kBlockRows + v % kVectorsPerBlock * Simd::kLanes;
                Simd::store(zeros + v * Simd::kLanes, Simd::load_bytes(bytes));
            }
            add_group(words, words_stride, zeros, input, sums);
            AWQKIT_UNROLL for (int v = 0; v < kVectors; ++v) {
                const Vector scale =
                    Simd::load_halves(params + v / kVectorsPerBlock * params_stride +
                                      v % kVectorsPerBlock * Simd::kLanes * 2);
                AWQKIT_UNROLL for (int t = 0; t < kTokens; ++t) {
                    float* total = totals + (t * kVectors + v) * Simd::kLanes;
                    Simd::store(total, Simd::scaled_add(sums[v][t], scale, Simd::load(total)));
                }
            }
            words += kWordsPerGroup * kBlockRows;
            params += kGroupParamBytes;
            input.x += kWordsPerGroup * Simd::kSteps * kTokens;
            input.sums += kSumsPerGroup * kTokens;
        }
    }

    static void compute(const W4Linear& call, int64_t block, int64_t first_token,
                        TileInput<Simd> input) {
        alignas(64) float totals[kTokens * kBlocks * kBlockRows] = {};
        add_all_groups(call, block, input, totals);
        const int64_t row = block * kBlockRows;
        const int64_t rows = smaller(kBlocks * kBlockRows, call.out_features - row);
        for (int t = 0; t < kTokens; ++t) {
            float* total = totals + t * kBlocks * kBlockRows;
            if (call.bias != nullptr) {
                float bias[kBlocks * kBlockRows];
                load_row(call.bias, call.dtype, row, rows, bias);
                for (int64_t r = 0; r < rows; ++r) total[r] += bias[r];
            }
            store_row(total, rows, call.out, call.dtype,
                      (first_token + t) * call.out_features + row);
        }
    }
};

template <class Simd, int kBlocks, int kTokens>
void compute_blocks(const W4Linear& call, int64_t block, int64_t last_block, int64_t first_token,
                    TileInput<Simd> input) {
    for (; block + kBlocks <= last_block; block += kBlocks) {
        Tile<Simd, kBlocks, kTokens>::compute(call, block, first_token, input);
    }
    if constexpr (kBlocks > 1) {
        compute_blocks<Simd, kBlocks / 2, kTokens>(call, block, last_block, first_token, input);
    }
}

// Picks the instance for a tile of `tokens` tokens, at most kTokens.
template <class Simd, int kTokens = Simd::kMaxTokens>
void compute_tile(const W4Linear& call, int64_t block, int64_t last_block, int64_t first_token,
                  int tokens, TileInput<Simd> input) {
    if constexpr (kTokens > 0) {
        if (tokens == kTokens) {
            constexpr int kBlocks = Simd::blocks_of_tile(kTokens);
            compute_blocks<Simd, kBlocks, kTokens>(call, block, last_block, first_token, input);
        } else {
            compute_tile<Simd, kTokens - 1>(call, block, last_block, first_token, tokens, input);
        }
    }
}

}  // namespace
}  // namespace awqkit
