// A warpgroup that dequantizes its codes and multiplies them with the tokens of the ring.
#pragma once

#include "w4_dequantize.cuh"
#include "w4_prefill_tile.cuh"
#include "w4_prefill_wgmma.cuh"
#include "w4_schedule.cuh"

namespace w4_prefill {

class Consumer {
 public:
  __device__ __forceinline__ explicit Consumer(const Shared& shared)
      : shared_(shared), warpgroup_(threadIdx.x / kWarpgroup - 1), lane_(threadIdx.x % 32),
        first_tile_(warpgroup_ * kRowBlocks * 4 + threadIdx.x / 32 % 4) {}

  // Sums the segment's groups into sums[row block][...], which it clears first.
  __device__ __forceinline__ void accumulate(float (&sums)[kSums],
                                             const w4::Segment& segment) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) sums[i] = 0.0f;
    u32 fragments[2][4][4];
    const u32 magic = w4::opaque_magic();
    w4::RowParams params[kRowBlocks];
    for (int group = segment.begin; group < segment.end; ++group) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        barrier_wait(shared_.full + 8 * ring_.stage, ring_.parity);
        const u64 tokens = token_descriptor(shared_.tokens + ring_.stage * kTokenBytes);
#pragma unroll
        for (int block = 0; block < kRowBlocks; ++block) {
          if (half == 0) params[block] = load_params(block);
          uint4 codes = load_shared(shared_.codes + ring_.stage * kCodeBytes +
                                          (first_tile_ + 4 * block) * 512 + lane_ * 16);
          u32(&fragment)[4][4] = fragments[(half * kRowBlocks + block) % 2];
          w4::dequantize(codes.x, params[block], magic, fragment[0]);
          w4::dequantize(codes.y, params[block], magic, fragment[1]);
          w4::dequantize(codes.z, params[block], magic, fragment[2]);
          w4::dequantize(codes.w, params[block], magic, fragment[3]);
          pin_registers(fragment);
          wgmma_fence();
#pragma unroll
          for (int step = 0; step < 4; ++step)
            wgmma(sums + block * kBlockSums, fragment[step], tokens + 2 * step);
          wgmma_commit();
          wgmma_wait<1>();
          if (block == 0 && (group > segment.begin || half > 0)) release();
        }
        ring_.advance();
      }
    }
    wgmma_wait<0>();
    release();
  }

 private:
  __device__ __forceinline__ w4::RowParams load_params(int block) const {
    uint2 words;
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];"
                 : "=r"(words.x), "=r"(words.y)
                 : "r"(shared_.params + ring_.stage * kParamBytes +
                       (first_tile_ + 4 * block) * 64 + lane_ / 4 * 8));
    return w4::unpack_row_params(words);
  }

  // Gives the oldest stage still held back to the producers of the whole cluster.
  __device__ __forceinline__ void release() {
    __syncwarp();
    if (lane_ < kCluster) barrier_arrive_at(shared_.empty + 8 * released_, lane_);
    if (++released_ == kStages) released_ = 0;
  }

  const Shared& shared_;
  int warpgroup_;
  int lane_;
  int first_tile_;
  Ring ring_;
  int released_ = 0;
};

}  // namespace w4_prefill
