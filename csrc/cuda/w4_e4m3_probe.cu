// What a group costs when codes and inputs are e4m3 numbers, and how exact its sums are. Four warpgroups
// of 64 rows each; an input is the sum of two e4m3 numbers, the second one sixteenfold, each a column.
//
// Compile-time: PROBE_TOKENS (16, 32 or 64), PROBE_TIMED (1: the same group again and again, out of shared
// memory; 0: all of K, out of global memory, with the result in y).
// Launch: block 512; dynamic shared memory 2 * PROBE_TOKENS * 128 + 16 * 1088 + 1024 bytes.
// codes, params: w4 tiles, 16 row tiles a block. x: e4m3 [groups, 2 * PROBE_TOKENS, 128], inputs in the
// order in which a word holds them. sums: FP32 [groups, PROBE_TOKENS], of the scaled inputs.
// y: FP32 [PROBE_TOKENS, rows], of the scaled inputs. cycles: of every block.
#define W4_TOKENS (2 * PROBE_TOKENS)
#define W4_CONSUMERS 4
#define W4_CLUSTER 1
#define W4_SPLIT 1
#define W4_STAGES 4
#define W4_BATCH 4
#define W4_SCALE_SUMS 1
#define W4_BLOCKS 1
#define W4_ROW_BLOCKS 1
#include "w4_dequantize.cuh"
#include "w4_prefill_wgmma.cuh"

using namespace w4_prefill;

#define PROBE_E4M3(adds, shape, names, registers, a0, a1, a2, a3, b)                         \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" shape "k32.f32.e4m3.e4m3 {" names         \
               "}, {" a0 "," a1 "," a2 "," a3 "}, " b ", " adds ", 1, 1;"                    \
               : registers                                                                   \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(tokens))
#if PROBE_TOKENS == 16
#define PROBE_MULTIPLY(adds) \
  PROBE_E4M3(adds, "32", W4_NAMES_0, W4_REGISTERS_0(d), "%16", "%17", "%18", "%19", "%20")
#elif PROBE_TOKENS == 32
#define PROBE_MULTIPLY(adds) \
  PROBE_E4M3(adds, "64", W4_NAMES_1, W4_REGISTERS_1(d), "%32", "%33", "%34", "%35", "%36")
#else
#define PROBE_MULTIPLY(adds) \
  PROBE_E4M3(adds, "128", W4_NAMES_3, W4_REGISTERS_3(d), "%64", "%65", "%66", "%67", "%68")
#endif

__device__ __forceinline__ void multiply_first(float* d, const u32 (&a)[4], u64 tokens) {
  PROBE_MULTIPLY("0");
}
__device__ __forceinline__ void multiply(float* d, const u32 (&a)[4], u64 tokens) {
  PROBE_MULTIPLY("1");
}

// A nibble in a byte is code * 2^-9.
__device__ __forceinline__ void fragments_of(const uint4 (&codes)[2], u32 (&fragments)[4][4]) {
  const u32 word[8] = {codes[0].x, codes[0].y, codes[0].z, codes[0].w,
                       codes[1].x, codes[1].y, codes[1].z, codes[1].w};
#pragma unroll
  for (int step = 0; step < 4; ++step) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      fragments[step][2 * half] = word[2 * step + half] & 0x0f0f0f0fu;
      fragments[step][2 * half + 1] = word[2 * step + half] >> 4 & 0x0f0f0f0fu;
    }
    pin_registers(fragments[step]);
  }
}

extern "C" __global__ void __launch_bounds__(512, 1)
    w4_e4m3_probe(const u32* codes, const u32* params, const uint4* x, const float* x_sums, float* y,
                  long long* cycles, int groups, int rows) {
  extern __shared__ __align__(1024) unsigned char memory[];
  constexpr int kHalf = PROBE_TOKENS / 2;  // sums of a thread
  const u32 base = (shared_address(memory) + 1023u) & ~1023u;
  unsigned char* shared = memory + (base - shared_address(memory));
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, tile = blockIdx.x * 16 + warp;
  const u64 tokens = kTokenDescriptor + (base >> 4);
  const auto load_x = [&](int group) {
    __syncthreads();
    for (int i = threadIdx.x; i < 2 * PROBE_TOKENS * 8; i += 512) {
      const int row = i / 8, chunk = i % 8;
      *reinterpret_cast<uint4*>(shared + row * 128 + (chunk ^ row % 8) * 16) =
          x[group * 2 * PROBE_TOKENS * 8 + i];
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
  };
  unsigned char* own = shared + 2 * PROBE_TOKENS * 128 + warp * 1088;
  load_x(0);
  for (int i = 0; i < 2; ++i)
    *reinterpret_cast<uint4*>(own + i * 512 + lane * 16) =
        *reinterpret_cast<const uint4*>(codes + (static_cast<size_t>(tile) * 2 * groups + i) * 128 + lane * 4);
  if (lane < 16)
    *reinterpret_cast<u32*>(own + 1024 + lane * 4) = params[static_cast<size_t>(tile) * groups * 16 + lane];
  __syncthreads();

  float totals[kHalf] = {}, sums[2 * kHalf];
  u32 fragments[4][4];
  const long long begin = clock64();
#pragma unroll 1
  for (int group = 0; group < groups; ++group) {
    uint4 words[2];
    uint2 param;
#if PROBE_TIMED
    words[0] = load_shared(shared_address(own) + lane * 16);
    words[1] = load_shared(shared_address(own) + 512 + lane * 16);
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];"
                 : "=r"(param.x), "=r"(param.y)
                 : "r"(shared_address(own) + 1024 + lane / 4 * 8));
#else
    if (group > 0) load_x(group);
    for (int i = 0; i < 2; ++i)
      words[i] = *reinterpret_cast<const uint4*>(
          codes + (static_cast<size_t>(tile) * 2 * groups + 2 * group + i) * 128 + lane * 4);
    param = *reinterpret_cast<const uint2*>(params + (static_cast<size_t>(tile) * groups + group) * 16 +
                                            lane / 4 * 2);
#endif
    fragments_of(words, fragments);
    wgmma_fence();
    multiply_first(sums, fragments[0], tokens);
#pragma unroll
    for (int step = 1; step < 4; ++step) multiply(sums, fragments[step], tokens + 2 * step);
    wgmma_commit();
    float scale[2], minus_zero[2];
    for (int row = 0; row < 2; ++row) {
      const u32 word = row ? param.y : param.x;
      scale[row] = w4::scale_of(word);
      minus_zero[row] = (128.0f - __uint_as_float(word & 0xffff0000u)) * scale[row];
      scale[row] *= 512.0f;
    }
    float2 inputs[PROBE_TOKENS / 8];
    for (int j = 0; j < PROBE_TOKENS / 8; ++j)
      inputs[j] = *reinterpret_cast<const float2*>(x_sums + group * PROBE_TOKENS + 8 * j + lane % 4 * 2);
    wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < 2 * kHalf; ++i) asm volatile("" : "+f"(sums[i])::"memory");
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const float both = sums[i] + 0.0625f * sums[kHalf + i];
      totals[i] += scale[i / 2 % 2] * both;
      totals[i] += minus_zero[i / 2 % 2] * (i % 2 ? inputs[i / 4].y : inputs[i / 4].x);
    }
  }
  const long long end = clock64();
  if (threadIdx.x == 0) cycles[blockIdx.x] = end - begin;
#pragma unroll
  for (int i = 0; i < kHalf; ++i) {
    const int row = 16 * tile + lane / 4 + i / 2 % 2 * 8, token = i / 4 * 8 + lane % 4 * 2 + i % 2;
    y[static_cast<size_t>(token) * rows + row] = totals[i];
  }
}
