// What a consumer warp reads of the stages of the ring, one after the other, and gives back.
#pragma once

#include "w4_dequantize.cuh"
#include "w4_prefill_tile.cuh"

namespace w4_prefill {

// A lane's codes of one 16-row tile: word s is k16 step s.
__device__ __forceinline__ u32 word_of(const uint4& codes, int step) {
  return step == 0 ? codes.x : step == 1 ? codes.y : step == 2 ? codes.z : codes.w;
}

// A value that is not computed anew wherever it is used.
__device__ __forceinline__ u32 kept(u32 value) {
  asm volatile("" : "+r"(value));
  return value;
}

class Stages {
 public:
  __device__ __forceinline__ explicit Stages(const Shared& shared)
      : shared_(shared), lane_(threadIdx.x % 32) {
    const int tile = threadIdx.x / kWarpgroup * kRowBlocks * 4 + threadIdx.x / 32 % 4;
    codes_ = kept(shared.codes + tile * kTileBytes + lane_ * 16);
    params_ = kept(shared.params + tile * 64 + lane_ / 4 * 8);
  }

  __device__ __forceinline__ int current() const { return ring_.stage; }
  __device__ __forceinline__ void wait() const {
    barrier_wait(shared_.full + 8 * ring_.stage, ring_.parity);
  }
  __device__ __forceinline__ void advance() { ring_.advance(); }

  // half: of the group; only where a stage holds both.
  __device__ __forceinline__ uint4 load_codes(int row_block, int half) const {
    return load_shared(codes_ + ring_.stage * kCodeBytes + 4 * row_block * kTileBytes +
                       (kSlices == 1 ? 0 : half * 512));
  }

  __device__ __forceinline__ uint2 load_params(int row_block) const {
    uint2 words;
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];"
                 : "=r"(words.x), "=r"(words.y)
                 : "r"(params_ + ring_.stage * kParamBytes + 4 * row_block * 64));
    return words;
  }

  // Gives the oldest stage still held back to the producers of the whole cluster.
  __device__ __forceinline__ void release() {
    __syncwarp();
    const u32 own = shared_.empty + 8 * released_;
    if (kCluster == 1 && lane_ == 0) barrier_arrive(own);
    if (kCluster > 1 && lane_ < kCluster) barrier_arrive_remote(address_in(own, lane_));
    if (++released_ == kStages) released_ = 0;
  }

 private:
  const Shared& shared_;
  int lane_;
  u32 codes_, params_;  // this lane's of stage 0
  Ring ring_;
  int released_ = 0;
};

}  // namespace w4_prefill
