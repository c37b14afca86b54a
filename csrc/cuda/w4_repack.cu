// 4-bit weights from the tensors of a checkpoint into w4 tiles (see awqkit_runtime's w4_tiles.py).
//
// `count` rows of the source become the rows first_row … of the tiles, which several linears may
// share: rows of other linears keep what they hold, so codes must be zero before the first launch.
// rows: the stored row of each of them, or null where they are rows 0 … count - 1. A null `zeros`
// stands for symmetric weights, whose zero point is 8.
//
// Launch: grid (ceil(row tiles touched / 8), k / 64), block 256: a warp for each tile of codes.
// first_row, count and stored_rows are multiples of 8, k of 128.
#include "bf16.cuh"

using namespace awqkit;

// int32 [k, rows/8] with row 8c + {0, 2, 4, 6, 1, 3, 5, 7}[i] in nibble i; scales [k/128, rows].
struct AwqSource {
  const u32* codes;
  const u32* zeros;
  const u16* scales;
  int stored_rows, k;

  __device__ u32 nibble(u32 word, int row) const {
    const int place = row % 8;
    return word >> 4 * (place / 2 + place % 2 * 4) & 15u;
  }
  __device__ u32 code(int row, int input) const {
    return nibble(codes[static_cast<long long>(input) * (stored_rows / 8) + row / 8], row);
  }
  __device__ u32 zero(int row, int group) const {
    return nibble(zeros[static_cast<long long>(group) * (stored_rows / 8) + row / 8], row);
  }
  __device__ u32 scale(int row, int group) const {
    return scales[static_cast<long long>(group) * stored_rows + row];
  }
};

// int32 [rows, k/8], input 8c + i in nibble i; zeros [rows/8, k/128], row 8c + i in nibble i.
struct CompressedTensorsSource {
  const u32* codes;
  const u32* zeros;
  const u16* scales;
  int stored_rows, k;

  __device__ u32 code(int row, int input) const {
    return codes[static_cast<long long>(row) * (k / 8) + input / 8] >> 4 * (input % 8) & 15u;
  }
  __device__ u32 zero(int row, int group) const {
    if (zeros == nullptr) return 8u;
    return zeros[static_cast<long long>(row / 8) * (k / 128) + group] >> 4 * (row % 8) & 15u;
  }
  __device__ u32 scale(int row, int group) const {
    return scales[static_cast<long long>(row) * (k / 128) + group];
  }
};

template <class Source>
__device__ u32 code_word(const Source& source, const int (&stored)[2], int input) {
  u32 word = 0;
#pragma unroll
  for (int p = 0; p < 4; ++p) {
    const int row = stored[p % 2];
    if (row < 0) continue;
    const int low = input + p / 2 * 8;
    word |= source.code(row, low) << 4 * p | source.code(row, low + 1) << 4 * (p + 4);
  }
  return word;
}

template <class Source>
__device__ void repack(const Source& source, const int* rows, uint4* codes, u32* params,
                       int first_row, int count) {
  const int lane = threadIdx.x % 32;
  const int row_tile = first_row / 16 + blockIdx.x * 8 + threadIdx.x / 32;
  if (row_tile * 16 >= first_row + count) return;
  const auto stored_row = [&](int row) {
    const int local = row_tile * 16 + row - first_row;
    if (local < 0 || local >= count) return -1;
    return rows == nullptr ? local : rows[local];
  };

  const int stored[2] = {stored_row(lane / 4), stored_row(lane / 4 + 8)};
  const int input = blockIdx.y * 64 + lane % 4 * 2;
  uint4& target = codes[(static_cast<long long>(row_tile) * (source.k / 64) + blockIdx.y) * 32 + lane];
  uint4 words = target;
  words.x |= code_word(source, stored, input);
  words.y |= code_word(source, stored, input + 16);
  words.z |= code_word(source, stored, input + 32);
  words.w |= code_word(source, stored, input + 48);
  target = words;

  if (blockIdx.y % 2 == 1 || lane >= 16) return;
  const int group = blockIdx.y / 2, row = stored_row(lane);
  if (row < 0) return;
  u32* entry = params + (static_cast<long long>(row_tile) * (source.k / 128) + group) * 16;
  const u32 offset = 0x4300u | source.zero(row, group);  // 128 + z as a BF16 number
  entry[lane % 8 * 2 + lane / 8] = offset << 16 | source.scale(row, group);
}

extern "C" __global__ void repack_awq(AwqSource source, const int* rows, uint4* codes,
                                      u32* params, int first_row, int count) {
  repack(source, rows, codes, params, first_row, count);
}

extern "C" __global__ void repack_compressed_tensors(CompressedTensorsSource source,
                                                     const int* rows, uint4* codes, u32* params,
                                                     int first_row, int count) {
  repack(source, rows, codes, params, first_row, count);
}
