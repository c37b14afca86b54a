// A warpgroup that multiplies its codes, as they are, with the integers of the ring.
#pragma once

#include "w4_prefill_integers_wgmma.cuh"
#include "w4_prefill_stages.cuh"
#include "w4_schedule.cuh"

namespace w4_prefill {

class IntegerConsumer {
 public:
  __device__ __forceinline__ explicit IntegerConsumer(const Shared& shared)
      : stages_(shared),
        tokens_(kept(static_cast<u32>(kTokenDescriptor) + (shared.tokens >> 4))),
        scales_(kept(shared.scales + threadIdx.x % 4 * 16)) {}

  // Sums the segment's groups into totals, which it clears first.
  __device__ __forceinline__ void accumulate(float (&totals)[kSums], const w4::Segment& segment) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) totals[i] = 0.0f;
#if W4_PROBE & 2
    for (int left = segment.end - segment.begin; left > 0; --left) {
      stages_.wait();
      stages_.advance();
      stages_.release();
    }
    return;
#endif
    stages_.wait();
    Operands operands[kSets];
    unpack(load_group(), operands[0]);
    for (int left = segment.end - segment.begin; left > 0; left -= kSets) {
#pragma unroll
      for (int set = 0; set < kSets; ++set) {
        if (left <= set) break;
        add_group(totals, operands[set], operands[(set + 1) % kSets], left > set + 1);
      }
    }
  }

 private:
  static constexpr int kBlockSums = kTokens / 2;  // of a row block

  // Of a lane: codes and params.
  struct Group {
    uint4 codes[kRowBlocks][2];
    uint2 words[kRowBlocks];
  };

  // The codes of a group's k32 steps in the order of wgmma; its params.
  struct Operands {
    u32 fragments[kRowBlocks][4][4];
    uint2 words[kRowBlocks];
  };

  // Of operands. With two, taken in turn, the next group's are made while the tensor cores multiply; with
  // many tokens there are no registers for that.
  static constexpr int kSets = kTokens > 16 ? 1 : 2;

  __device__ __forceinline__ Group load_group() const {
    Group group;
#pragma unroll
    for (int block = 0; block < kRowBlocks; ++block) {
      group.codes[block][0] = stages_.load_codes(block, 0);
      group.codes[block][1] = stages_.load_codes(block, 1);
      group.words[block] = stages_.load_params(block);
    }
    return group;
  }

  __device__ __forceinline__ static void unpack(const Group& group, Operands& operands) {
#pragma unroll
    for (int block = 0; block < kRowBlocks; ++block) {
      operands.words[block] = group.words[block];
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        u32(&fragment)[4] = operands.fragments[block][step];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const u32 word = word_of(group.codes[block][step / 2], step % 2 * 2 + half);
          fragment[2 * half] = word & 0x0f0f0f0fu;
          fragment[2 * half + 1] = word >> 4 & 0x0f0f0f0fu;
        }
        pin_registers(fragment);
      }
    }
  }

  // next: may be the same as operands; filled if there are more groups.
  __device__ __forceinline__ void add_group(float (&totals)[kSums], const Operands& operands,
                                            Operands& next, bool more) {
    int products[kRowBlocks][2 * kBlockSums];
    const u64 tokens = stage_tokens();
#pragma unroll
    for (int block = 0; block < kRowBlocks; ++block)
      multiply(products[block], operands.fragments[block], tokens);
    const u32 scales = scales_ + stages_.current() * kScaleBytes;
    stages_.advance();
    Group group;
    if (more) {
      stages_.wait();
      group = load_group();
#if W4_PROBE & 8
      next.words[0] = group.words[0];
#else
      if constexpr (kSets > 1) unpack(group, next);
#endif
    }
    uint4 of_tokens[kTokens / 8];
    if constexpr (kSets > 1) load_scales(of_tokens, scales);
#pragma unroll
    for (int block = 0; block < kRowBlocks; ++block) {
      if (block + 1 < kRowBlocks)
        wgmma_wait<1>();
      else
        wgmma_wait<0>();
      if (kSets == 1 && block == 0) load_scales(of_tokens, scales);
#if W4_PROBE & 4
      for (int i = 0; i < 2 * kBlockSums; ++i) asm volatile("" : "+r"(products[block][i])::"memory");
      totals[block * kBlockSums] += __uint_as_float(products[block][0] + operands.words[block].x + of_tokens[0].x);
#else
      add_scaled(totals + block * kBlockSums, products[block], operands.words[block], of_tokens);
#endif
    }
    stages_.release();
#if !(W4_PROBE & 8)
    if (kSets == 1 && more) unpack(group, next);
#endif
  }

  __device__ __forceinline__ static void load_scales(uint4 (&of_tokens)[kTokens / 8], u32 scales) {
#pragma unroll
    for (int j = 0; j < kTokens / 8; ++j) of_tokens[j] = load_shared(scales + 64 * j);
  }

  __device__ __forceinline__ static void multiply(int (&products)[2 * kBlockSums],
                                                  const u32 (&fragments)[4][4], u64 tokens) {
    wgmma_fence();
    wgmma_integers_first(products, fragments[0], tokens);
#pragma unroll
    for (int step = 1; step < 4; ++step)
      wgmma_integers(products, fragments[step], tokens + kStep * step);
    wgmma_commit();
  }

  // Products 0 and 1 of every four belong to row r, the others to row r + 8; the second half of them to
  // the inputs' low bytes. of_tokens: scale and negative sum of two neighbouring tokens.
  __device__ __forceinline__ static void add_scaled(float* totals, int (&products)[2 * kBlockSums],
                                                    uint2 words,
                                                    const uint4 (&of_tokens)[kTokens / 8]) {
#pragma unroll
    for (int i = 0; i < 2 * kBlockSums; ++i) asm volatile("" : "+r"(products[i])::"memory");
    const float row_scales[2] = {w4::scale_of(words.x), w4::scale_of(words.y)};
    const int zeros[2] = {zero_of(words.x), zero_of(words.y)};
#pragma unroll
    for (int i = 0; i < kBlockSums; ++i) {
      const uint4& two = of_tokens[i / 4];
      const float scale = __uint_as_float(i % 2 == 0 ? two.x : two.z);
      const int minus_sum = static_cast<int>(i % 2 == 0 ? two.y : two.w), row = i / 2 % 2;
      const int exact = 256 * products[i] + products[kBlockSums + i] + zeros[row] * minus_sum;
      totals[i] += row_scales[row] * scale * static_cast<float>(exact);
    }
    if constexpr (kRowBlocks > 1) {  // Before the next row block's products are waited for.
#pragma unroll
      for (int i = 0; i < kBlockSums; ++i) asm volatile("" : "+f"(totals[i])::"memory");
    }
  }

  // The params hold BF16 bits of 128 + z, whose low byte is z.
  __device__ __forceinline__ static int zero_of(u32 word) { return __byte_perm(word, 0, 0x4442); }

  // Read from one lane, so that the descriptor lies in uniform registers.
  __device__ __forceinline__ u64 stage_tokens() const {
    const u32 low = __shfl_sync(0xffffffffu, tokens_ + stages_.current() * (kTokenBytes / 16), 0);
    return static_cast<u64>(kTokenDescriptor >> 32) << 32 | low;
  }

  static constexpr int kStep = 2;  // 32 inputs further on, in a descriptor's address

  Stages stages_;
  u32 tokens_;  // low word of stage 0's descriptor
  u32 scales_;  // this lane's two tokens' of stage 0
};

}  // namespace w4_prefill
