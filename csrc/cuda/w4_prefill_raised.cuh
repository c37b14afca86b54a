// A warpgroup that multiplies its codes, read as subnormal numbers, with raised tokens by wgmma.
#pragma once

#include "w4_prefill_stages.cuh"
#include "w4_prefill_turns.cuh"
#include "w4_prefill_wgmma.cuh"
#include "w4_schedule.cuh"

#ifndef W4_LAG
#define W4_LAG 0
#endif
#ifndef W4_LATE
#define W4_LATE 1
#endif

namespace w4_prefill {

// Codes are masked out of their words and multiplied as they stand. A group's scales meet its sums,
// and zero points the sums of its tokens, in FP32.
class RaisedConsumer {
 public:
  __device__ __forceinline__ explicit RaisedConsumer(const Shared& shared)
      : stages_(shared), tokens_(kept(static_cast<u32>(kTokenDescriptor) + (shared.tokens >> 4)))
#if W4_LAG == 2
        , turns_(shared)
#endif
  {}

  // Sums the segment's groups into totals, which it clears first. A batch of k16 steps is masked
  // while the tensor cores multiply the one before.
  __device__ __forceinline__ void accumulate(float (&totals)[kSums], const w4::Segment& segment) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) totals[i] = 0.0f;
#if W4_LAG == 2
    accumulate_in_turns(totals, segment);
#elif W4_LAG
    accumulate_lagging(totals, segment);
#else
    float sums[kSums] = {};
    stages_.wait();
    load_codes();
    mask_batch(0, fragments_[0]);
    for (int left = segment.end - segment.begin;;) {
      const u64 tokens = stage_tokens();
      float scale[2];
#pragma unroll
      for (int batch = 0; batch < kBatches; ++batch) {
        multiply_batch(sums, fragments_[batch % 2], tokens, batch);
        if (batch + 1 == kBatches) break;
        if (batch > 0) wgmma_wait<1>();
        if (W4_LATE && batch == 0) load_late_codes();
        mask_batch(batch + 1, fragments_[(batch + 1) % 2]);
      }
      subtract_zeros(totals, scale);
      stages_.advance();
      if (--left > 0) {
        stages_.wait();
        load_codes();
        wgmma_wait<1>();
        mask_batch(0, fragments_[0]);
      }
      wgmma_wait<0>();
      add_scaled(totals, sums, scale);
      stages_.release();
      if (left == 0) break;
    }
#endif
#pragma unroll
    for (int i = 0; i < kSums; ++i) totals[i] *= w4::kRaisedScale;
  }

 private:
  static constexpr int kBatches = 8 / kBatch;  // of a group

#if W4_LAG == 2
  __device__ __forceinline__ void accumulate_in_turns(float (&totals)[kSums],
                                                      const w4::Segment& segment) {
    float sums[kSums] = {};
    stages_.wait();
    load_codes();
    load_late_codes();
    for (int left = segment.end - segment.begin;;) {
      mask_batch(0, fragments_[0]);
      const u64 tokens = stage_tokens();
      float scale[2];
      turns_.wait();
      multiply_batch(sums, fragments_[0], tokens, 0);
      turns_.pass();
      subtract_zeros(totals, scale);
      stages_.advance();
      if (--left > 0) {
        stages_.wait();
        load_codes();
        load_late_codes();
      }
      wgmma_wait<0>();
      add_scaled(totals, sums, scale);
      stages_.release();
      if (left == 0) break;
    }
  }
#elif W4_LAG
  // A group's scales meet its sums while the next group is multiplied, so that the tensor cores
  // always have something to do.
  __device__ __forceinline__ void accumulate_lagging(float (&totals)[kSums],
                                                     const w4::Segment& segment) {
    float sums[2][kSums], scale[2][2] = {};
#pragma unroll
    for (int i = 0; i < kSums; ++i) sums[1][i] = 0.0f;
    int left = segment.end - segment.begin;
    stages_.wait();
    load_codes();
    mask_batch(0, fragments_[0]);
    begin_group(sums[0]);
    finish_group(totals, sums[0], scale[0], --left > 0);
    while (left > 0) {
      begin_group(sums[1]);
      end_group<1>(totals, sums[0], scale[0]);
      finish_group(totals, sums[1], scale[1], --left > 0);
      if (left == 0) {
        end_group<0>(totals, sums[1], scale[1]);
        return;
      }
      begin_group(sums[0]);
      end_group<1>(totals, sums[1], scale[1]);
      finish_group(totals, sums[0], scale[0], --left > 0);
    }
    end_group<0>(totals, sums[0], scale[0]);
  }

  __device__ __forceinline__ void begin_group(float (&sums)[kSums]) {
    multiply_batch(sums, fragments_[0], stage_tokens(), 0);
  }

  __device__ __forceinline__ void finish_group(float (&totals)[kSums], float (&sums)[kSums],
                                               float (&scale)[2], bool more) {
    const u64 tokens = stage_tokens();
    if (W4_LATE) load_late_codes();
    mask_batch(1, fragments_[1]);
    multiply_batch(sums, fragments_[1], tokens, 1);
    subtract_zeros(totals, scale);
#pragma unroll
    for (int batch = 2; batch < kBatches; ++batch) {
      wgmma_wait<1>();
      mask_batch(batch, fragments_[batch % 2]);
      multiply_batch(sums, fragments_[batch % 2], tokens, batch);
    }
    stages_.advance();
    if (more) {
      stages_.wait();
      load_codes();
      wgmma_wait<1>();
      mask_batch(0, fragments_[0]);
    }
  }

  // Its stage is the oldest one still held. kPending: batches in flight that came later.
  template <int kPending>
  __device__ __forceinline__ void end_group(float (&totals)[kSums], float (&sums)[kSums],
                                            const float (&scale)[2]) {
    wgmma_wait<kPending>();
    add_scaled(totals, sums, scale);
    stages_.release();
  }
#endif

  __device__ __forceinline__ void load_codes() {
    codes_[0] = stages_.load_codes(0, 0);
    if (!W4_LATE) codes_[1] = stages_.load_codes(0, 1);
  }

  __device__ __forceinline__ void load_late_codes() { codes_[1] = stages_.load_codes(0, 1); }

  // Batches of kBatch k16 steps of a group.
  __device__ __forceinline__ void mask_batch(int batch, u32 (&fragments)[kBatch][4]) const {
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int step = batch * kBatch + i;
      w4::subnormal_codes(word_of(codes_[step / 4], step % 4), fragments[i]);
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

  // While the group is multiplied. Also returns what its scales are.
  __device__ __forceinline__ void subtract_zeros(float (&totals)[kSums], float (&scale)[2]) const {
    const w4::RaisedParams params = w4::unpack_raised_params(stages_.load_params(0));
    float inputs[kSums / 2];
    stages_.load_input_sums(inputs);
#pragma unroll
    for (int i = 0; i < kSums; ++i)
      totals[i] += params.minus_zero[i / 2 % 2] * inputs[i / 4 * 2 + i % 2];
    scale[0] = params.scale[0];
    scale[1] = params.scale[1];
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
#if W4_LAG == 2
  Turns turns_;
#endif
  uint4 codes_[2];
  u32 fragments_[W4_LAG == 2 ? 1 : 2][kBatch][4];
};

}  // namespace w4_prefill
