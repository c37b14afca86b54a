// A warpgroup that dequantizes its codes and multiplies them with the tokens of the ring.
#pragma once

#include "w4_dequantize.cuh"
#include "w4_prefill_tile.cuh"
#include "w4_prefill_wgmma.cuh"
#include "w4_schedule.cuh"

namespace w4_prefill {

// A lane's codes of one 16-row tile: word s is k16 step s.
__device__ __forceinline__ u32 word_of(const uint4& codes, int step) {
  return step == 0 ? codes.x : step == 1 ? codes.y : step == 2 ? codes.z : codes.w;
}

class Consumer {
 public:
  __device__ __forceinline__ explicit Consumer(const Shared& shared)
      : shared_(shared), lane_(threadIdx.x % 32),
        first_tile_((threadIdx.x / kWarpgroup) * kRowBlocks * 4 + threadIdx.x / 32 % 4) {}

  // Sums the segment's groups into sums, which it clears first.
  //
  // A batch of k16 steps is dequantized while the tensor cores multiply the one before: two sets of
  // fragment registers, one batch in flight.
  __device__ __forceinline__ void accumulate(float (&sums)[kSums], const w4::Segment& segment) {
    if constexpr (kScaleSums)
      accumulate_scaled_sums(sums, segment);
    else
      accumulate_scaled_weights(sums, segment);
  }

 private:
  __device__ __forceinline__ void accumulate_scaled_weights(float (&sums)[kSums],
                                                            const w4::Segment& segment) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) sums[i] = 0.0f;
    const u32 magic = w4::opaque_magic();
    constexpr int kBatches = 4 / kBatch;  // of a row block and stage
    u32 fragments[2][kBatch][4];
    w4::RowParams params[kRowBlocks];
    barrier_wait(shared_.full + 8 * ring_.stage, ring_.parity);
    uint4 codes = load_codes(0);
    uint2 words = load_params(0);
    for (int group = segment.begin; group < segment.end; ++group) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const u64 tokens = stage_tokens();
#pragma unroll
        for (int block = 0; block < kRowBlocks; ++block) {
          if (half == 0) params[block] = w4::unpack_row_params(words);
          uint4 next_codes = codes;
#pragma unroll
          for (int batch = 0; batch < kBatches; ++batch) {
            const int set = ((half * kRowBlocks + block) * kBatches + batch) % 2;
#pragma unroll
            for (int i = 0; i < kBatch; ++i) {
              w4::dequantize(word_of(codes, batch * kBatch + i), params[block], magic,
                             fragments[set][i]);
              pin_registers(fragments[set][i]);
            }
            wgmma_fence();
#pragma unroll
            for (int i = 0; i < kBatch; ++i)
              wgmma(sums + block * kBlockSums, fragments[set][i],
                    tokens + 2 * (batch * kBatch + i));
            wgmma_commit();
            const bool fetch = batch == (kBatches > 2 ? 2 : kBatches - 1);
            if (fetch && block + 1 < kRowBlocks) {
              next_codes = load_codes(block + 1);
              if (half == 0) words = load_params(block + 1);
            }
            if (fetch && block + 1 == kRowBlocks) {
              ring_.advance();
              if (half == 0 || group + 1 < segment.end) {
                barrier_wait(shared_.full + 8 * ring_.stage, ring_.parity);
                next_codes = load_codes(0);
                if (half == 1) words = load_params(0);
              }
            }
            wgmma_wait<1>();
            if (batch == 0 && block == 0 && (half > 0 || group > segment.begin)) release();
          }
          codes = next_codes;
        }
      }
    }
    wgmma_wait<0>();
    release();
  }

  // The tensor cores multiply codes less zero points, and a group's scales meet its sums. A group's
  // first stage is dequantized while the last one of the group before is multiplied.
  __device__ __forceinline__ void accumulate_scaled_sums(float (&totals)[kSums],
                                                         const w4::Segment& segment) {
    static_assert(!kScaleSums || kRowBlocks == 1, "one row block a warpgroup");
#pragma unroll
    for (int i = 0; i < kSums; ++i) totals[i] = 0.0f;
    const u32 magic = w4::opaque_magic();
    u32 fragments[2][4][4];
    float sums[kSums] = {};
    float scale[2];
    barrier_wait(shared_.full + 8 * ring_.stage, ring_.parity);
    uint4 codes = load_codes(0);
    uint2 words = load_params(0);
    for (int group = segment.begin; group < segment.end; ++group) {
      const w4::ExactParams params = w4::unpack_exact_params(words);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const u64 tokens = stage_tokens();
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          w4::subtract_zeros(word_of(codes, i), params.minus_offset, magic, fragments[half][i]);
          pin_registers(fragments[half][i]);
        }
        if (half == 0) {
          if (group > segment.begin) {
            wgmma_wait<0>();
            add_scaled(totals, sums, scale);
            release();
          }
          scale[0] = params.scale[0];
          scale[1] = params.scale[1];
        }
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (half == 0 && i == 0)
            wgmma_first(sums, fragments[half][i], tokens);
          else
            wgmma(sums, fragments[half][i], tokens + 2 * i);
        }
        wgmma_commit();
        ring_.advance();
        if (half == 0 || group + 1 < segment.end) {
          barrier_wait(shared_.full + 8 * ring_.stage, ring_.parity);
          codes = load_codes(0);
          if (half == 1) words = load_params(0);
        }
        if (half == 1) {
          wgmma_wait<1>();
          release();
        }
      }
    }
    wgmma_wait<0>();
    add_scaled(totals, sums, scale);
    release();
  }

  // Sums 0 and 1 of every four belong to row r, the others to row r + 8.
  __device__ __forceinline__ static void add_scaled(float (&totals)[kSums], float (&sums)[kSums],
                                                    const float (&scale)[2]) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) asm volatile("" : "+f"(sums[i])::"memory");  // Not earlier.
#pragma unroll
    for (int i = 0; i < kSums; ++i) totals[i] += scale[i / 2 % 2] * sums[i];
  }

  // Read from one lane, so that the descriptor lies in uniform registers.
  __device__ __forceinline__ u64 stage_tokens() const {
    return token_descriptor(
        __shfl_sync(0xffffffffu, shared_.tokens + ring_.stage * kTokenBytes, 0));
  }

  __device__ __forceinline__ uint4 load_codes(int block) const {
    return load_shared(shared_.codes + ring_.stage * kCodeBytes + (first_tile_ + 4 * block) * 512 +
                       lane_ * 16);
  }

  __device__ __forceinline__ uint2 load_params(int block) const {
    uint2 words;
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];"
                 : "=r"(words.x), "=r"(words.y)
                 : "r"(shared_.params + ring_.stage * kParamBytes +
                       (first_tile_ + 4 * block) * 64 + lane_ / 4 * 8));
    return words;
  }

  // Gives the oldest stage still held back to the producers of the whole cluster.
  __device__ __forceinline__ void release() {
    __syncwarp();
    if (lane_ < kCluster) {
      const u32 own = shared_.empty + 8 * released_;
      barrier_arrive_remote(kCluster == 1 ? own : address_in(own, lane_));
    }
    if (++released_ == kStages) released_ = 0;
  }

  const Shared& shared_;
  int lane_;
  int first_tile_;
  Ring ring_;
  int released_ = 0;
};

}  // namespace w4_prefill
