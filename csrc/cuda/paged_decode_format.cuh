// The variant that one compilation of paged_decode.cu is, and how its pages lie in memory.
#pragma once

#include "paged_decode_ptx.cuh"

namespace paged_decode {

constexpr int kHeadDim = PD_HEAD_DIM;
constexpr int kKeyBits = PD_KEY_BITS;
constexpr int kValueBits = PD_VALUE_BITS;
constexpr int kHeadTiles = PD_HEAD_TILES;    // n8 tiles of query heads
constexpr int kTokenTiles = PD_TOKEN_TILES;  // m16 tiles of tokens in a step
constexpr int kStreams = PD_STREAMS;         // see Softmax
constexpr int kWarps = PD_WARPS;
constexpr int kThreads = 32 * kWarps;

constexpr bool kQuantized = kKeyBits < 16;
constexpr int kDimTiles = kHeadDim / 16;  // k16 steps of a score, m16 tiles of an output
constexpr int kPageTokens = 64;
constexpr int kTokens = 16 * kTokenTiles;  // of a step, which is the unit of all scheduling
constexpr int kScoreTiles = kTokenTiles / kStreams;  // m16 tiles of scores in a step
constexpr int kMostHeads = 8 * kHeadTiles / kStreams;
constexpr int kKeyRow = kHeadDim * kKeyBits / 8;      // bytes of a token
constexpr int kValueRow = kHeadDim * kValueBits / 8;
constexpr u32 kAll = 0xffffffffu;

static_assert(kHeadDim % 32 == 0 && kPageTokens % kTokens == 0);
static_assert(kTokenTiles % kStreams == 0 && (kStreams == 1 || (kStreams == 2 && kHeadTiles == 1)));
static_assert((kKeyBits == 16) == (kValueBits == 16), "pages are dense or quantized");

// Keys, values: [pages, kv_heads, 64, row]. params: [pages, 2 · kv_heads, 64] pairs of FP16, scale
// and minimum, of the keys and then of the values; null for dense pages.
struct Pages {
  const unsigned char* keys;
  const unsigned char* values;
  const u32* params;
  int kv_heads;
};

// Where a token's vectors lie: which row of keys and of values, and which of the keys' parameters.
struct Place {
  u32 row;
  u32 params;
};

__device__ __forceinline__ Place place_of(int kv_heads, int page, int kv_head, int token) {
  const u32 page_row = static_cast<u32>(page) * (kv_heads * kPageTokens);
  const u32 row = page_row + kv_head * kPageTokens + token;
  return {row, row + page_row};
}

// Which token of a tile a lane of row lane / 4 has in a score's upper half (the lower half is 8 tokens
// on). In this order the tokens whose values a lane needs, at rows 2c and 2c + 1 where c = lane % 4 and
// at both 8 on, are c, 4 + c, 8 + c and 12 + c: a quad loads neighbours.
__device__ __forceinline__ int score_token(int lane) { return lane / 8 + lane / 4 % 2 * 4; }

// Of the tokens in a tile of scores, which of the step's tiles those of a lane's column are in.
__device__ __forceinline__ int token_tile(int score_tile, int lane) {
  return kStreams == 1 ? score_tile : kStreams * score_tile + lane % 4 / 2;
}

// Query heads [first, first + count) of one row, which share a key-value head.
struct HeadGroup {
  int kv_head;
  int first;
  int count;
};

// A key-value head's `group` query heads, in `teams` equal teams of at most kMostHeads.
struct HeadLayout {
  int group;
  int teams;

  __device__ __forceinline__ int kv_head(int unit_head) const {
    return teams == 1 ? unit_head : unit_head / teams;
  }

  __device__ __forceinline__ HeadGroup at(int unit_head) const {
    if (teams == 1) return {unit_head, unit_head * group, group};
    const int kv_head = unit_head / teams, share = (group + teams - 1) / teams;
    const int begin = (unit_head - kv_head * teams) * share;
    return {kv_head, kv_head * group + begin, min(share, group - begin)};
  }
};

// Codes are taken as the bits of BF16 numbers: below 256 these are linear, code · 2^-133. What they
// are multiplied with is raised by 2^kRaise, so that products are no subnormals of FP32.
constexpr int kRaise = 64;

// Codes of 4 bits share a byte, those of the head's upper half on top. Products of the lower half take
// the byte as it is, code + 16 · upper code; what the upper one adds is found by itself, since its own
// products see 16 · upper code, and taken off afterwards: FP32 loses nothing that counts.
//
// Bits that codes stand above the low ends of their bytes.
__device__ __forceinline__ constexpr int code_shift(bool upper_half) { return upper_half ? 4 : 0; }

// Two bytes of a word, each the low half of 16 bits.
__device__ __forceinline__ u32 even_bytes(u32 word) { return word & 0x00ff00ffu; }
__device__ __forceinline__ u32 odd_bytes(u32 word) { return __byte_perm(word, 0, 0x4341); }
__device__ __forceinline__ u32 upper_codes(u32 bytes) { return bytes & 0x00f000f0u; }

// 2^exponent.
__device__ __forceinline__ constexpr float two_to(int exponent) {
  float result = 1.0f;
  for (int i = 0; i < exponent; ++i) result *= 2.0f;
  for (int i = 0; i > exponent; --i) result *= 0.5f;
  return result;
}

// What a product's sum is multiplied with to be one of codes.
__device__ __forceinline__ constexpr float code_unit(bool upper_half) {
  return two_to(133 - kRaise - code_shift(upper_half));
}

}  // namespace paged_decode
