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
        first_tile_((threadIdx.x / kWarpgroup) * kRowBlocks * 4 + threadIdx.x / 32 % 4),
        codes_(kept(shared.codes + first_tile_ * kTileBytes + lane_ * 16)),
        params_(kept(shared.params + first_tile_ * 64 + lane_ / 4 * 8)),
        tokens_(kept(static_cast<u32>(kTokenDescriptor) + (shared.tokens >> 4))) {}

  // Sums the segment's groups into sums, which it clears first.
  //
  // A batch of k16 steps is dequantized while the tensor cores multiply the one before: two sets of
  // fragment registers, one batch in flight.
  __device__ __forceinline__ void accumulate(float (&sums)[kSums], const w4::Segment& segment) {
    if constexpr (kBare)
      pass_by(sums, segment);
    else if constexpr (kMmaSync)
      accumulate_warp_sums(sums, segment);
    else if constexpr (kScaleSums && kSlices == 2 && kTurns)
      accumulate_group_sums(sums, segment);
    else if constexpr (kScaleSums)
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
    constexpr int kBatches = 4 / kBatch;  // of a row block and slice
    u32 fragments[2][kBatch][4];
    w4::RowParams params[kRowBlocks];
    barrier_wait(shared_.full + 8 * ring_.stage, ring_.parity);
    uint4 codes = load_codes(0, 0);
    uint2 words = load_params(0);
    u64 tokens = 0;
    for (int group = segment.begin; group < segment.end; ++group) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const bool last_slice = kSlices == 1 || half == 1;  // of the stage
        if (kSlices == 1 || half == 0) tokens = stage_tokens();
#pragma unroll
        for (int block = 0; block < kRowBlocks; ++block) {
          if (half == 0) params[block] = row_params(words);
          uint4 next_codes = codes;
#pragma unroll
          for (int batch = 0; batch < kBatches; ++batch) {
            const int set = ((half * kRowBlocks + block) * kBatches + batch) % 2;
#pragma unroll
            for (int i = 0; i < kBatch; ++i) {
              const u32 word = word_of(codes, batch * kBatch + i);
              if constexpr (kSubnormal)
                w4::dequantize_small<kSubnormal == 2>(word, params[block], fragments[set][i]);
              else
                w4::dequantize(word, params[block], magic, fragments[set][i]);
              pin_registers(fragments[set][i]);
            }
            wgmma_fence();
#pragma unroll
            for (int i = 0; i < kBatch; ++i)
              wgmma(sums + block * kBlockSums, fragments[set][i],
                    tokens + kStep * (batch * kBatch + i) + half_offset(half));
            wgmma_commit();
            const bool fetch = batch == (kBatches > 2 ? 2 : kBatches - 1);
            if (fetch && block + 1 < kRowBlocks) {
              next_codes = load_codes(block + 1, half);
              if (half == 0) words = load_params(block + 1);
            }
            if (fetch && block + 1 == kRowBlocks && !last_slice) next_codes = load_codes(0, 1);
            if (fetch && block + 1 == kRowBlocks && last_slice) {
              ring_.advance();
              if (half == 0 || group + 1 < segment.end) {
                barrier_wait(shared_.full + 8 * ring_.stage, ring_.parity);
                next_codes = load_codes(0, 1 - half);
                if (half == 1) words = load_params(0);
              }
            }
            wgmma_wait<1>();
            const bool first_slice = kSlices == 1 || half == 0;
            if (batch == 0 && block == 0 && first_slice && (half > 0 || group > segment.begin))
              release();
          }
          codes = next_codes;
        }
      }
    }
    wgmma_wait<0>();
    release();
  }

  // The tensor cores multiply codes less zero points, and a group's scales meet its sums. A group's
  // first slice is dequantized while the last one of the group before is multiplied.
  __device__ __forceinline__ void accumulate_scaled_sums(float (&totals)[kSums],
                                                         const w4::Segment& segment) {
    static_assert(!kScaleSums || kRowBlocks == 1 || kMmaSync, "one row block a warpgroup");
#pragma unroll
    for (int i = 0; i < kSums; ++i) totals[i] = 0.0f;
    u32 fragments[2][4][4];
    float sums[kSums] = {};
    float scale[2];
    barrier_wait(shared_.full + 8 * ring_.stage, ring_.parity);
    uint4 codes[2] = {load_codes(0, 0), load_codes(0, kSlices - 1)};
    uint2 words = load_params(0);
    u64 tokens = 0;
    for (int group = segment.begin; group < segment.end; ++group) {
      const w4::ExactParams params = exact_params(words);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (kSlices == 1 || half == 0) tokens = stage_tokens();
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          dequantize_exactly(word_of(codes[kSlices == 1 ? 0 : half], i), params,
                             fragments[half][i]);
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
            wgmma(sums, fragments[half][i], tokens + kStep * i + half_offset(half));
        }
        wgmma_commit();
        if (kSlices == 1 || half == 1) {
          ring_.advance();
          if (half == 0 || group + 1 < segment.end) {
            barrier_wait(shared_.full + 8 * ring_.stage, ring_.parity);
            codes[0] = load_codes(0, 0);
            if (kSlices == 2) codes[1] = load_codes(0, 1);
            if (half == 1) words = load_params(0);
          }
        }
        if (half == 1) {
          wgmma_wait<1>();
          if (kSlices == 1) release();
        }
      }
    }
    wgmma_wait<0>();
    add_scaled(totals, sums, scale);
    release();
    if constexpr (kSubnormal) {
#pragma unroll
      for (int i = 0; i < kSums; ++i) totals[i] *= w4::kCodeScale;
    }
  }

  // The same with a group a stage. Nothing is in flight where the loop begins anew: a group's first
  // slice was dequantized while the second one of the group before was multiplied.
  __device__ __forceinline__ void accumulate_group_sums(float (&totals)[kSums],
                                                        const w4::Segment& segment) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) totals[i] = 0.0f;
    constexpr int kBatches = 8 / kBatch;  // of a group
    u32 fragments[2][kBatch][4];
    float sums[kSums] = {};
    barrier_wait(shared_.full + 8 * ring_.stage, ring_.parity);
    uint4 codes[2] = {load_codes(0, 0), load_codes(0, 1)};
    w4::ExactParams params = exact_params(load_params(0));
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
      ring_.advance();
      if (--left > 0) {
        barrier_wait(shared_.full + 8 * ring_.stage, ring_.parity);
        codes[0] = load_codes(0, 0);
        codes[1] = load_codes(0, 1);
        params = exact_params(load_params(0));
        wgmma_wait<1>();
        dequantize_batch(codes, 0, params, fragments[0]);
      }
      wgmma_wait<0>();
      add_scaled(totals, sums, scale);
      release();
      if (left == 0) break;
    }
    if constexpr (kSubnormal) {
#pragma unroll
      for (int i = 0; i < kSums; ++i) totals[i] *= w4::kCodeScale;
    }
  }

  // Batches of kBatch k16 steps of a group.
  __device__ __forceinline__ static void dequantize_batch(const uint4 (&codes)[2], int batch,
                                                          const w4::ExactParams& params,
                                                          u32 (&fragments)[kBatch][4]) {
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int step = batch * kBatch + i;
      dequantize_exactly(word_of(codes[step / 4], step % 4), params, fragments[i]);
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
        wgmma(sums, fragments[i], tokens + kStep * (step % 4) + half_offset(step / 4));
    }
    wgmma_commit();
  }

  __device__ __forceinline__ static void dequantize_exactly(u32 word,
                                                            const w4::ExactParams& params,
                                                            u32 (&fragment)[4]) {
    if constexpr (kSubnormal)
      w4::subtract_small_zeros<kSubnormal == 2>(word, params.minus_offset, fragment);
    else
      w4::subtract_zeros(word, params.minus_offset, w4::opaque_magic(), fragment);
    pin_registers(fragment);
  }

  __device__ __forceinline__ void pass_by(float (&sums)[kSums], const w4::Segment& segment) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) sums[i] = 0.0f;
    for (int slice = 2 * segment.begin; slice < 2 * segment.end; slice += kSlices) {
      barrier_wait(shared_.full + 8 * ring_.stage, ring_.parity);
      ring_.advance();
      release();
    }
  }

  // The same without wgmma: every warp by itself, with mma.m16n8k16, whose sums lie alike. Its row
  // blocks share the tokens' fragments. All of a stage is in registers before the first product.
  __device__ __forceinline__ void accumulate_warp_sums(float (&totals)[kSums],
                                                       const w4::Segment& segment) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) totals[i] = 0.0f;
    for (int left = segment.end - segment.begin; left > 0; --left) {
      barrier_wait(shared_.full + 8 * ring_.stage, ring_.parity);
      uint4 codes[kRowBlocks][2];
      uint2 words[kRowBlocks];
#pragma unroll
      for (int block = 0; block < kRowBlocks; ++block) {
        words[block] = load_params(block);
        codes[block][0] = load_codes(block, 0);
        codes[block][1] = load_codes(block, 1);
      }
      u32 tokens[8][kFetched / 8][2];
      load_token_fragments(tokens);
      ring_.advance();
      release();
      float sums[kSums] = {};
      w4::ExactParams params[kRowBlocks];
#pragma unroll
      for (int block = 0; block < kRowBlocks; ++block) params[block] = exact_params(words[block]);
#pragma unroll
      for (int step = 0; step < 8; ++step)
#pragma unroll
        for (int block = 0; block < kRowBlocks; ++block) {
          u32 fragment[4];
          w4::subtract_small_zeros<false>(word_of(codes[block][step / 4], step % 4),
                                          params[block].minus_offset, fragment);
#pragma unroll
          for (int eight = 0; eight < kFetched / 8; ++eight)
            mma(sums + block * kBlockSums + 4 * eight, fragment, tokens[step][eight][0],
                tokens[step][eight][1]);
        }
#pragma unroll
      for (int i = 0; i < kSums; ++i)
        if (i % kBlockSums < kFetched / 2)
          totals[i] += params[i / kBlockSums].scale[i / 2 % 2] * sums[i];
    }
#pragma unroll
    for (int i = 0; i < kSums; ++i) totals[i] *= w4::kCodeScale;
  }

  // The B fragments of a stage: of 8 tokens and 16 inputs each. In the 128-byte swizzle the 16-byte
  // chunk c of token t lies at c XOR t mod 8. One instruction brings 16 tokens of a step, or 8 of two.
  __device__ __forceinline__ void load_token_fragments(u32 (&fragments)[8][kFetched / 8][2]) const {
    constexpr bool kEight = kFetched == 8;
    const int token = kEight ? lane_ % 8 : lane_ / 16 * 8 + lane_ % 8;
    const int chunk = (kEight ? lane_ / 8 : lane_ / 8 % 2) ^ (lane_ % 8);
    const u32 base = shared_.tokens + ring_.stage * kTokenBytes + token * 128 + chunk * 16;
#pragma unroll
    for (int step = 0; step < 8; step += kEight ? 2 : 1)
#pragma unroll
      for (int pair = 0; pair < (kEight ? 1 : kFetched / 16); ++pair) {
        u32 four[4];
        load_matrices(four, (base ^ (step % 4 * 32)) + step / 4 * kSliceBytes + pair * 2048);
#pragma unroll
        for (int i = 0; i < 4; ++i)
          fragments[step + (kEight ? i / 2 : 0)][2 * pair + (kEight ? 0 : i / 2)][i % 2] = four[i];
      }
  }

  __device__ __forceinline__ static void load_matrices(u32 (&four)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(four[0]), "=r"(four[1]), "=r"(four[2]), "=r"(four[3])
                 : "r"(address)
                 : "memory");
  }

  // d[16 x 8] += a[16 x 16] . b[8 x 16]^T
  __device__ __forceinline__ static void mma(float* d, const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7},"
        " {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
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
    const u32 low = __shfl_sync(0xffffffffu, tokens_ + ring_.stage * (kTokenBytes / 16), 0);
    return static_cast<u64>(kTokenDescriptor >> 32) << 32 | low;
  }

  // Of a step of 16 inputs, and of a slice in its stage, in descriptors' addresses.
  static constexpr int kStep = 2;
  __device__ __forceinline__ static int half_offset(int half) {
    return kSlices == 1 ? 0 : half * (kSliceBytes / 16);
  }

  // half: of the group; only where a stage holds both.
  __device__ __forceinline__ uint4 load_codes(int block, int half) const {
    return load_shared(codes_ + ring_.stage * kCodeBytes + tiles_ahead(block) * kTileBytes +
                       (kSlices == 1 ? 0 : half * 512));
  }

  // From a warp's first tile to that of another row block. Beyond the last one it is that again.
  __device__ __forceinline__ int tiles_ahead(int block) const {
    if constexpr (kTiles == 4 * kConsumers * kRowBlocks)
      return 4 * block;
    else
      return min(first_tile_ + 4 * block, kTiles - 1) - first_tile_;
  }

  // A value that is not computed anew wherever it is used.
  __device__ __forceinline__ static u32 kept(u32 value) {
    asm volatile("" : "+r"(value));
    return value;
  }

  __device__ __forceinline__ static w4::RowParams row_params(uint2 words) {
    const w4::RowParams params = w4::unpack_row_params(words);
    if constexpr (kSubnormal)
      return w4::small_params(params);
    else
      return params;
  }

  __device__ __forceinline__ static w4::ExactParams exact_params(uint2 words) {
    const w4::ExactParams params = w4::unpack_exact_params(words);
    if constexpr (kSubnormal)
      return w4::small_params(params);
    else
      return params;
  }

  __device__ __forceinline__ uint2 load_params(int block) const {
    uint2 words;
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];"
                 : "=r"(words.x), "=r"(words.y)
                 : "r"(params_ + ring_.stage * kParamStride + tiles_ahead(block) * 64));
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

  const Shared& shared_;
  int lane_;
  int first_tile_;
  u32 codes_, params_;  // this lane's of stage 0
  u32 tokens_;          // low word of stage 0's descriptor
  Ring ring_;
  int released_ = 0;
};

}  // namespace w4_prefill
