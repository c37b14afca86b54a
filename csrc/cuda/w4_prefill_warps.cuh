// For up to 8 tokens: every warp multiplies by itself, with mma.m16n8k16, whose sums lie like those
// of wgmma. A wgmma waits for all of a warpgroup, which costs more than so few products.
#pragma once

#include "w4_prefill_stages.cuh"
#include "w4_schedule.cuh"

namespace w4_prefill {

class WarpConsumer {
 public:
  __device__ __forceinline__ explicit WarpConsumer(const Shared& shared) : stages_(shared) {
    // In the 128-byte swizzle the 16-byte chunk c of token t lies at c XOR t mod 8.
    const int lane = threadIdx.x % 32, token = lane % 8;
    tokens_ = shared.tokens + token * 128 + ((lane / 8) ^ token) * 16;
  }

  // Sums the segment's groups into totals, which it clears first. A warp's row blocks share the
  // tokens' fragments. All of a stage is in registers before the first product.
  __device__ __forceinline__ void accumulate(float (&totals)[kSums], const w4::Segment& segment) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) totals[i] = 0.0f;
    for (int left = segment.end - segment.begin; left > 0; --left) {
      stages_.wait();
      uint4 codes[kRowBlocks][2];
      uint2 words[kRowBlocks];
#pragma unroll
      for (int block = 0; block < kRowBlocks; ++block) {
        words[block] = stages_.load_params(block);
        codes[block][0] = stages_.load_codes(block, 0);
        codes[block][1] = stages_.load_codes(block, 1);
      }
      u32 tokens[8][2];
      load_tokens(tokens);
      stages_.advance();
      stages_.release();
      add_group(totals, codes, words, tokens);
    }
#pragma unroll
    for (int i = 0; i < kSums; ++i) totals[i] *= w4::kCodeScale;
  }

 private:
  __device__ __forceinline__ static void add_group(float (&totals)[kSums],
                                                   const uint4 (&codes)[kRowBlocks][2],
                                                   const uint2 (&words)[kRowBlocks],
                                                   const u32 (&tokens)[8][2]) {
    w4::ExactParams params[kRowBlocks];
    float sums[kRowBlocks][4] = {};
#pragma unroll
    for (int block = 0; block < kRowBlocks; ++block)
      params[block] = w4::unpack_exact_params(words[block]);
#pragma unroll
    for (int step = 0; step < 8; ++step)
#pragma unroll
      for (int block = 0; block < kRowBlocks; ++block) {
        u32 fragment[4];
        w4::subtract_zeros(word_of(codes[block][step / 4], step % 4), params[block], fragment);
        mma(sums[block], fragment, tokens[step]);
      }
#pragma unroll
    for (int block = 0; block < kRowBlocks; ++block)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        totals[block * (kTokens / 2) + i] += params[block].scale[i / 2] * sums[block][i];
  }

  // The B fragments of a stage, of 8 tokens and 16 inputs each; an instruction brings two.
  __device__ __forceinline__ void load_tokens(u32 (&fragments)[8][2]) const {
    const u32 base = tokens_ + stages_.current() * kTokenBytes;
#pragma unroll
    for (int step = 0; step < 8; step += 2)
      load_matrices(fragments[step], fragments[step + 1],
                    (base ^ (step % 4 * 32)) + step / 4 * kSliceBytes);
  }

  __device__ __forceinline__ static void load_matrices(u32 (&first)[2], u32 (&second)[2],
                                                       u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(first[0]), "=r"(first[1]), "=r"(second[0]), "=r"(second[1])
                 : "r"(address)
                 : "memory");
  }

  // d[16 x 8] += a[16 x 16] . b[8 x 16]^T
  __device__ __forceinline__ static void mma(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7},"
        " {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }

  Stages stages_;
  u32 tokens_;  // this lane's of stage 0
};

}  // namespace w4_prefill
