// The warps that prepare the tokens of a stage for products with subnormal codes, where they lie.
#pragma once

#include "w4_dequantize.cuh"
#include "w4_prefill_tile.cuh"
#include "w4_schedule.cuh"

namespace w4_prefill {

// Of matrices of 8 rows x 16 bytes: each lane names a row of one of the four.
__device__ __forceinline__ void load_matrices(u32 address, u32 (&matrices)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(address)
               : "memory");
}

__device__ __forceinline__ void store_matrices(u32 address, const u32 (&matrices)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
               "r"(matrices[0]), "r"(matrices[1]), "r"(matrices[2]), "r"(matrices[3])
               : "memory");
}

__device__ __forceinline__ void store_shared(u32 address, float value) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(address), "f"(value) : "memory");
}

// What the generic proxy wrote becomes visible to tensor cores and copies.
__device__ __forceinline__ void async_proxy_fence() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Multiplies tokens by 2^96, exactly up to 2^32, and sums up each token's inputs, which the zero
// points want. A warp has every fourth 8 tokens of all stages.
class TokenConverter {
 public:
  __device__ __forceinline__ TokenConverter(const Shared& shared, int warp)
      : shared_(shared), warp_(warp), lane_(threadIdx.x % 32) {
    // Lane 8i + j names row j of matrix i: 8 rows of 8 inputs each, four times.
    // In the 128-byte swizzle the 16-byte chunk c of row r lies at c XOR r mod 8.
    const int row = lane_ % 8;
    tokens_ = shared.tokens + row * 128 + ((lane_ / 8) ^ row) * 16;
    // As Stages::load_input_sums wants them: of this lane's token of 8.
    sums_ = shared.input_sums + (lane_ / 8 * kSums / 2 + lane_ / 4 % 2) * 4;
  }

  __device__ __forceinline__ void run(const w4::Problem& problem, int worker) const {
    if (warp_ >= kConverters) return;
    Ring ring;
#pragma unroll 1
    for (int left = w4::count_groups(problem, worker); left > 0; --left) {
      barrier_wait(shared_.raw + 8 * ring.stage, ring.parity);
#pragma unroll
      for (int first = 0; first < kTokens / 8; first += kConverters)
        if (W4_PROBE != 1)
          if (first + warp_ < kTokens / 8) convert(ring.stage, first + warp_);
      async_proxy_fence();
      __syncwarp();
      if (lane_ == 0) barrier_arrive(shared_.full + 8 * ring.stage);
      ring.advance();
    }
  }

 private:
  // 8 tokens of a group.
  __device__ __forceinline__ void convert(int stage, int unit) const {
    const u32 tokens = tokens_ + stage * kTokenBytes + unit * 8 * 128;
    u32 pieces[4][4];  // of 32 inputs
#pragma unroll
    for (int i = 0; i < 4; ++i)
      load_matrices((tokens ^ i % 2 * 64) + i / 2 * kSliceBytes, pieces[i]);
    float sums[4] = {};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      u32 raised[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) raised[j] = w4::fma_bf16x2(pieces[i][j], w4::kRaise, 0x80008000u);
      store_matrices((tokens ^ i % 2 * 64) + i / 2 * kSliceBytes, raised);
#if W4_PROBE != 2
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        sums[j % 2] += __uint_as_float(pieces[i][j] << 16);
        sums[2 + j % 2] += __uint_as_float(pieces[i][j] & 0xffff0000u);
      }
#endif
    }
    float sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    if (lane_ % 4 == 0) store_shared(sums_ + stage * kInputSumBytes + unit * 8, sum * w4::kLowered);
  }

  const Shared& shared_;
  int warp_;
  int lane_;
  u32 tokens_, sums_;  // this lane's of stage 0
};

}  // namespace w4_prefill
