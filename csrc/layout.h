// Byte-layout constants that C++ and CUDA share with Python; a test holds both sides equal.
#pragma once

namespace awqkit {

// awqkit/checkpoint/layout.py
constexpr int kBits = 4;
constexpr int kMaxCode = 15;
constexpr int kGroupSize = 128;
constexpr int kCodesPerWord = 8;
constexpr int kAwqOrder[8] = {0, 2, 4, 6, 1, 3, 5, 7};

// awqkit_runtime/kernels/packed_w4.py
constexpr int kBlockRows = 16;
constexpr int kGroupParamBytes = 48;

}  // namespace awqkit
