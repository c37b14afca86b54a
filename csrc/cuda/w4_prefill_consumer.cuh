// A warpgroup that dequantizes its codes and multiplies them with the tokens of the ring by wgmma.
#pragma once

#include "w4_prefill_stages.cuh"
#include "w4_prefill_wgmma.cuh"
#include "w4_schedule.cuh"

namespace w4_prefill {

class WarpgroupConsumer {
 public:
  __device__ __forceinline__ explicit WarpgroupConsumer(const Shared& shared)
      : stages_(shared), tokens_(kept(static_cast<u32>(kTokenDescriptor) + (shared.tokens >> 4))) {}

  // Sums the segment's groups into sums, which it clears first.
  //
  // A batch of k16 steps is dequantized while the tensor cores multiply the one before: two sets of
  // fragment registers, one batch in flight.
  __device__ __forceinline__ void accumulate(float (&sums)[kSums], const w4::Segment& segment) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) sums[i] = 0.0f;
    if constexpr (kScaleSums)
      accumulate_scaled_sums(sums, segment);
    else
      accumulate_scaled_weights(sums, segment);
  }

 private:
  // A stage holds half a group.
  __device__ __forceinline__ void accumulate_scaled_weights(float (&sums)[kSums],
                                                            const w4::Segment& segment) {
    const u32 magic = w4::opaque_magic();
    constexpr int kBatches = 4 / kBatch;  // of a half
    u32 fragments[2][kBatch][4];
    w4::RowParams params;
    stages_.wait();
    uint4 codes = stages_.load_codes(0, 0);
    uint2 words = stages_.load_params(0);
    for (int group = segment.begin; group < segment.end; ++group) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const u64 tokens = stage_tokens();
        if (half == 0) params = w4::unpack_row_params(words);
        uint4 next_codes = codes;
#pragma unroll
        for (int batch = 0; batch < kBatches; ++batch) {
          const int set = (half * kBatches + batch) % 2;
#pragma unroll
          for (int i = 0; i < kBatch; ++i) {
            w4::dequantize(word_of(codes, batch * kBatch + i), params, magic, fragments[set][i]);
            pin_registers(fragments[set][i]);
          }
          wgmma_fence();
#pragma unroll
          for (int i = 0; i < kBatch; ++i)
            wgmma(sums, fragments[set][i], tokens + kStep * (batch * kBatch + i));
          wgmma_commit();
          if (batch == (kBatches > 2 ? 2 : kBatches - 1)) {
            stages_.advance();
            if (half == 0 || group + 1 < segment.end) {
              stages_.wait();
              next_codes = stages_.load_codes(0, 1 - half);
              if (half == 1) words = stages_.load_params(0);
            }
          }
          wgmma_wait<1>();
          if (batch == 0 && (half > 0 || group > segment.begin)) stages_.release();
        }
        codes = next_codes;
      }
    }
    wgmma_wait<0>();
    stages_.release();
  }

  // The tensor cores multiply codes less zero points, and a group's scales meet its sums. A stage
  // holds a group. Nothing is in flight where the loop begins anew: a group's first batch was
  // dequantized while the last one of the group before was multiplied.
  __device__ __forceinline__ void accumulate_scaled_sums(float (&totals)[kSums],
                                                         const w4::Segment& segment) {
    constexpr int kBatches = 8 / kBatch;  // of a group
    u32 fragments[2][kBatch][4];
    float sums[kSums] = {};
    stages_.wait();
    uint4 codes[2] = {stages_.load_codes(0, 0), stages_.load_codes(0, 1)};
    w4::ExactParams params = w4::unpack_exact_params(stages_.load_params(0));
    dequantize_batch(codes, 0, params, fragments[0]);
    for (int left = segment.end - segment.begin;;) {
      const u64 tokens = stage_tokens();
#pragma unroll
      for (int batch = 0; batch < kBatches; ++batch) {
        multiply_batch(sums, fragments[batch % 2], tokens, batch);
        if (batch + 1 == kBatches) break;
        if (batch > 0) wgmma_wait<1>();
        dequantize_batch(codes, batch + 1, params, fragments[(batch + 1) % 2]);
      }
      const float scale[2] = {params.scale[0], params.scale[1]};
      stages_.advance();
      if (--left > 0) {
        stages_.wait();
        codes[0] = stages_.load_codes(0, 0);
        codes[1] = stages_.load_codes(0, 1);
        params = w4::unpack_exact_params(stages_.load_params(0));
        wgmma_wait<1>();
        dequantize_batch(codes, 0, params, fragments[0]);
      }
      wgmma_wait<0>();
      add_scaled(totals, sums, scale);
      stages_.release();
      if (left == 0) break;
    }
#pragma unroll
    for (int i = 0; i < kSums; ++i) totals[i] *= w4::kCodeScale;
  }

  // Batches of kBatch k16 steps of a group.
  __device__ __forceinline__ static void dequantize_batch(const uint4 (&codes)[2], int batch,
                                                          const w4::ExactParams& params,
                                                          u32 (&fragments)[kBatch][4]) {
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int step = batch * kBatch + i;
      w4::subtract_zeros(word_of(codes[step / 4], step % 4), params, fragments[i]);
      pin_registers(fragments[i]);
    }
  }

  __device__ __forceinline__ static void multiply_batch(float (&sums)[kSums],
                                                        const u32 (&fragments)[kBatch][4],
                                                        u64 tokens, int batch) {
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int step = batch * kBatch + i;
      if (step == 0)
        wgmma_first(sums, fragments[i], tokens);
      else
        wgmma(sums, fragments[i], tokens + kStep * (step % 4) + step / 4 * (kSliceBytes / 16));
    }
    wgmma_commit();
  }

  // Sums 0 and 1 of every four belong to row r, the others to row r + 8.
  __device__ __forceinline__ static void add_scaled(float (&totals)[kSums], float (&sums)[kSums],
                                                    const float (&scale)[2]) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) asm volatile("" : "+f"(sums[i])::"memory");  // Not earlier.
#pragma unroll
    for (int i = 0; i < kSums; ++i) totals[i] += scale[i / 2 % 2] * sums[i];
  }

  // Read from one lane, so that the descriptor lies in uniform registers. No stage lies beyond what
  // its address field holds, so that adding to the low word is adding to the address.
  __device__ __forceinline__ u64 stage_tokens() const {
    const u32 low = __shfl_sync(0xffffffffu, tokens_ + stages_.current() * (kTokenBytes / 16), 0);
    return static_cast<u64>(kTokenDescriptor >> 32) << 32 | low;
  }

  static constexpr int kStep = 2;  // 16 inputs further on, in a descriptor's address

  Stages stages_;
  u32 tokens_;  // low word of stage 0's descriptor
};

}  // namespace w4_prefill
