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

// d[16 x 8] += a[16 x 16] . b, where all of b is one pair.
__device__ __forceinline__ void add_rows(float (&d)[4], const u32 (&a)[4], u32 pair) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7},"
      " {%8, %8}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(pair));
}

__device__ __forceinline__ void store_shared(u32 address, float value) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(address), "f"(value) : "memory");
}

// What the generic proxy wrote becomes visible to tensor cores and copies.
__device__ __forceinline__ void async_proxy_fence() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Multiplies tokens by 2^96, exactly up to 2^32, and sums up each token's inputs, which the zero
// points want, by a product with ones. A warp has every kConverters-th 16 tokens of all stages.
class TokenConverter {
 public:
  __device__ __forceinline__ TokenConverter(const Shared& shared, int warp)
      : shared_(shared), warp_(warp), lane_(threadIdx.x % 32) {
    // Lane 8i + j names row j of matrix i: rows 0 to 7, then 8 to 15, of 8 inputs, then the next 8.
    // In the 128-byte swizzle the 16-byte chunk c of row r lies at c XOR r mod 8.
    const int row = lane_ % 16;
    tokens_ = shared.tokens + row * 128 + ((lane_ / 16) ^ (row % 8)) * 16;
    // As Stages::load_input_sums wants them: of this lane's first token of 16.
    sums_ = shared.input_sums + (lane_ / 8 * kSums / 2 + lane_ / 4 % 2) * 4;
  }

  __device__ __forceinline__ void run(const w4::Problem& problem, int worker) const {
    if (warp_ >= kConverters) return;
    Ring ring;
#pragma unroll 1
    for (int left = w4::count_groups(problem, worker); left > 0; --left) {
      barrier_wait(shared_.raw + 8 * ring.stage, ring.parity);
#pragma unroll
      for (int first = 0; first < kTokens / 16; first += kConverters)
        if (W4_PROBE != 1)
        if (first + warp_ < kTokens / 16) convert(ring.stage, first + warp_);
      async_proxy_fence();
      __syncwarp();
      if (lane_ == 0) barrier_arrive(shared_.full + 8 * ring.stage);
      ring.advance();
    }
  }

 private:
  static constexpr int kPieces = 2;  // under way at once

  // 16 tokens of a group.
  __device__ __forceinline__ void convert(int stage, int tile) const {
    const u32 tokens = tokens_ + stage * kTokenBytes + tile * 16 * 128;
    float sums[4] = {};
#pragma unroll
    for (int slice = 0; slice < 2; ++slice) {
      u32 pieces[kPieces][4];  // of 16 inputs
#pragma unroll
      for (int first = 0; first < 4; first += kPieces) {
#pragma unroll
        for (int i = 0; i < kPieces; ++i)
          load_matrices((tokens ^ 32 * (first + i)) + slice * kSliceBytes, pieces[i]);
#pragma unroll
        for (int i = 0; i < kPieces; ++i) {
#if W4_PROBE == 3
#pragma unroll
          for (int j = 0; j < 4; ++j)
            sums[j % 2 * 2] += __uint_as_float(pieces[i][j] << 16) +
                               __uint_as_float(pieces[i][j] & 0xffff0000u);
#elif W4_PROBE != 2
          add_rows(sums, pieces[i], w4::kLowered);
#endif
#pragma unroll
          for (int j = 0; j < 4; ++j)
            pieces[i][j] = w4::fma_bf16x2(pieces[i][j], w4::kRaise, 0x80008000u);
          store_matrices((tokens ^ 32 * (first + i)) + slice * kSliceBytes, pieces[i]);
        }
      }
    }
#if W4_PROBE == 3
#pragma unroll
    for (int j = 0; j < 4; j += 2) {
      sums[j] += __shfl_xor_sync(0xffffffffu, sums[j], 1);
      sums[j] += __shfl_xor_sync(0xffffffffu, sums[j], 2);
      sums[j] *= __uint_as_float(90u << 23);
    }
#endif
    if (lane_ % 4 == 0) {
      const u32 own = sums_ + stage * kInputSumBytes + tile * 16;
      store_shared(own, sums[0]);
      store_shared(own + 8, sums[2]);
    }
  }

  const Shared& shared_;
  int warp_;
  int lane_;
  u32 tokens_, sums_;  // this lane's of stage 0
};

}  // namespace w4_prefill
