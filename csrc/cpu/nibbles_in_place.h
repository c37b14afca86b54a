// Weights as floats without moving their nibbles: what the float32 variants share.
//
// Step p of a word multiplies nibble p. It is masked where it lies and then counts 16^p times too
// much; that comes off its activation, exactly, when the activation is prepared. Only the topmost
// nibble, which would make the word negative, is shifted down instead.
#pragma once

#include "w4_linear.h"

namespace awqkit {
namespace {

constexpr bool is_topmost(int nibble) { return nibble == kCodesPerWord - 1; }

constexpr int shift_of(int nibble) { return kBits * nibble; }

constexpr int mask_of(int nibble) { return int(uint32_t(kMaxCode) << shift_of(nibble)); }

inline void pack_shares(const float* row, float* packed) {
    for (int word = 0; word < kSumInputs; word += kCodesPerWord) {
        for (int nibble = 0; nibble < kCodesPerWord; ++nibble) {
            const float excess = is_topmost(nibble) ? 1.0f : float(1 << shift_of(nibble));
            packed[word + nibble] = row[word + kAwqOrder[nibble]] / excess;
        }
    }
}

}  // namespace
}  // namespace awqkit
