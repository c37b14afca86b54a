// Keys and values of consecutive tokens of one sequence out of the pages of a layer, as BF16.
//
// Token t of the output stands at position first + t of the sequence, whose pages page_ids names in
// order. Codes become code * scale + minimum in FP32, product and sum rounded one by one as torch
// does, and are rounded to BF16; dense vectors (16 bits) are copied.
//
//   keys, values   [pages, kv_heads, 64, HEAD_DIM * bits / 8] bytes, 16-byte aligned
//   params         [pages, 2 * kv_heads, 64] pairs of FP16: scale, minimum; keys, then values
//   keys_out, values_out   BF16 [count, kv_heads, HEAD_DIM], 16-byte aligned
//
// A thread takes eight neighbouring bytes of codes, or eight numbers.
// Launch: grid (ceil(count * HEAD_DIM / 8 / threads), kv_heads, 2), block (threads), no dynamic
// shared memory; z = 0 are keys. HEAD_DIM is a multiple of 16.
#include "bf16.cuh"
#include "fp16.cuh"

using namespace awqkit;

constexpr int kPageTokens = 64;
constexpr int kDenseBits = 16;

__device__ Octet numbers(const unsigned char* codes, int shift, u32 mask, u32 pair) {
  const float scale = widen_fp16(static_cast<u16>(pair));
  const float minimum = widen_fp16(static_cast<u16>(pair >> 16));
  const uint2 words = *reinterpret_cast<const uint2*>(codes);
  Octet octet;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const u32 code = (i < 4 ? words.x : words.y) >> (8 * (i % 4) + shift) & mask;
    octet.value[i] = __fadd_rn(__fmul_rn(static_cast<float>(code), scale), minimum);
  }
  return octet;
}

extern "C" __global__ void __launch_bounds__(256)
    page_gather(const unsigned char* keys, const unsigned char* values, const u32* params,
                const int* page_ids, u16* keys_out, u16* values_out, long long first, int count,
                int kv_heads, int key_bits, int value_bits) {
  const bool is_value = blockIdx.z != 0;
  const int head = blockIdx.y, bits = is_value ? value_bits : key_bits;
  const unsigned char* vectors = is_value ? values : keys;
  const int octets = bits == 4 ? HEAD_DIM / 16 : HEAD_DIM / 8;
  const long long item = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  const long long token = item / octets;
  const int i = static_cast<int>(item % octets) * 8;
  let_successor_start();
  wait_for_predecessor();
  if (token >= count) return;

  const long long position = first + token, page = page_ids[position / kPageTokens];
  const long long offset = position % kPageTokens;
  const unsigned char* vector =
      vectors + ((page * kv_heads + head) * kPageTokens + offset) * (HEAD_DIM * bits / 8);
  u16* out = (is_value ? values_out : keys_out) + (token * kv_heads + head) * HEAD_DIM + i;
  if (bits == kDenseBits) {
    *reinterpret_cast<uint4*>(out) = *reinterpret_cast<const uint4*>(vector + 2 * i);
    return;
  }
  const long long run = page * 2 * kv_heads + (is_value ? kv_heads : 0) + head;
  const u32 pair = params[run * kPageTokens + offset];
  if (bits == 8) {
    numbers(vector + i, 0, 0xffu, pair).store(out);
  } else {
    numbers(vector + i, 0, 0xfu, pair).store(out);
    numbers(vector + i, 4, 0xfu, pair).store(out + HEAD_DIM / 2);
  }
}
