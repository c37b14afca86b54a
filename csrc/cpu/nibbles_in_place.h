// Weights as floats without moving their nibbles: what the float32 variants share.
//
// Step p of a word multiplies nibble p. It is masked where it lies, the upper four after one shift
// by half a word, and then counts 16^(p mod 4) times too much; that comes off its activation,
// exactly, when the activation is prepared.
#pragma once

#include "w4_linear.h"

namespace awqkit {
namespace {

constexpr int kNibblesPerHalf = kCodesPerWord / 2;

constexpr bool in_upper_half(int nibble) { return nibble >= kNibblesPerHalf; }

constexpr int mask_of(int nibble) { return kMaxCode << (kBits * (nibble % kNibblesPerHalf)); }

inline void pack_shares(const float* row, float* packed) {
    for (int word = 0; word < kSumInputs; word += kCodesPerWord) {
        for (int nibble = 0; nibble < kCodesPerWord; ++nibble) {
            const float excess = float(1 << (kBits * (nibble % kNibblesPerHalf)));
            packed[word + nibble] = row[word + kAwqOrder[nibble]] / excess;
        }
    }
}

}  // namespace
}  // namespace awqkit
