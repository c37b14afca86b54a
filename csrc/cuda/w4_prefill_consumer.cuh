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
  // One k16 step is dequantized while the tensor cores multiply the one before: two sets of fragment
  // registers, one wgmma in flight.
  __device__ __forceinline__ void accumulate(float (&sums)[kSums], const w4::Segment& segment) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) sums[i] = 0.0f;
    const u32 magic = w4::opaque_magic();
    u32 fragments[2][4];
    w4::RowParams params[kRowBlocks];
    barrier_wait(shared_.full + 8 * ring_.stage, ring_.parity);
    uint4 codes = load_codes(0);
    uint2 words = load_params(0);
    for (int group = segment.begin; group < segment.end; ++group) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const u64 tokens = token_descriptor(shared_.tokens + ring_.stage * kTokenBytes);
#pragma unroll
        for (int block = 0; block < kRowBlocks; ++block) {
          if (half == 0) params[block] = w4::unpack_row_params(words);
          uint4 next_codes = codes;
#pragma unroll
          for (int step = 0; step < 4; ++step) {
            u32(&fragment)[4] = fragments[step % 2];
            w4::dequantize(word_of(codes, step), params[block], magic, fragment);
            pin_registers(fragment);
            wgmma_fence();
            wgmma(sums + block * kBlockSums, fragment, tokens + 2 * step);
            wgmma_commit();
            if (step == 2 && block + 1 < kRowBlocks) {
              next_codes = load_codes(block + 1);
              if (half == 0) words = load_params(block + 1);
            }
            if (step == 2 && block + 1 == kRowBlocks) {
              ring_.advance();
              if (half == 0 || group + 1 < segment.end) {
                barrier_wait(shared_.full + 8 * ring_.stage, ring_.parity);
                next_codes = load_codes(0);
                if (half == 1) words = load_params(0);
              }
            }
            wgmma_wait<1>();
            if (step == 0 && block == 0 && (half > 0 || group > segment.begin)) release();
          }
          codes = next_codes;
        }
      }
    }
    wgmma_wait<0>();
    release();
  }

 private:
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
