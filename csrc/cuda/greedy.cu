// The likeliest token of each row of logits, and whether all of a row's logits are finite.
//
// logits BF16 [rows, vocab], contiguous; choice int64 [rows, 2]: the index of the largest logit, of
// equal ones the lowest, and 1 where every logit is finite, else 0. A row with a NaN gets an index
// within the vocabulary all the same.
//
// Launch: grid (rows), block (a multiple of 32 up to 1024), no dynamic shared memory.
#include "likeliest_key.cuh"

namespace {

using awqkit::u16;
using awqkit::u32;
using awqkit::u64;

constexpr int kVector = 8;
// Loads of a thread that are under way together.
constexpr int kAtOnce = 4;

// A thread's best number so far. It sees its numbers in the order of their indices.
struct Best {
  float value = -__uint_as_float(0x7f800000u);
  u32 index = 0;
  bool finite = true;

  __device__ __forceinline__ void see(float number, u32 at) {
    finite = finite && (__float_as_uint(number) & 0x7f800000u) != 0x7f800000u;
    if (number > value) {
      value = number;
      index = at;
    }
  }

  __device__ __forceinline__ u64 key() const { return awqkit::key_of(awqkit::ordered(value), index); }
};

__device__ __forceinline__ void see_words(Best& best, const uint4& words, u32 at) {
  const u32 word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    best.see(__uint_as_float(word[i] << 16), at + 2 * i);
    best.see(__uint_as_float(word[i] & 0xffff0000u), at + 2 * i + 1);
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(1024)
    greedy(const u16* logits, long long* choice, int vocab) {
  const u16* row = logits + static_cast<long long>(blockIdx.x) * vocab;
  Best best;
  if (vocab % kVector == 0) {
    const int stride = blockDim.x * kVector;
    for (int first = threadIdx.x * kVector; first < vocab; first += kAtOnce * stride) {
      uint4 words[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const int at = min(first + j * stride, vocab - kVector);
        words[j] = *reinterpret_cast<const uint4*>(row + at);
      }
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        if (first + j * stride < vocab) see_words(best, words[j], first + j * stride);
      }
    }
  } else {
    for (int at = threadIdx.x; at < vocab; at += blockDim.x) best.see(awqkit::widen(row[at]), at);
  }
  __shared__ u64 of_warps[32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  const u64 of_warp = awqkit::max_of_warp(best.key());
  if (lane == 0) of_warps[warp] = of_warp;
  const bool finite = __syncthreads_and(best.finite);
  if (warp != 0) return;
  const u64 key = awqkit::max_of_warp(lane < warps ? of_warps[lane] : 0ull);
  if (lane == 0) {
    choice[2 * blockIdx.x] = awqkit::token_of(key);
    choice[2 * blockIdx.x + 1] = finite;
  }
}
