// out = silu(gate) · up for gate_up BF16 [rows, 2n] (gate first), out BF16 [rows, n].
//
// Computed in FP32 and rounded once. A thread takes eight numbers, or of few rows two, so that more
// threads share what there is to compute.
// Launch: grid (rows, ceil(n / (8 · block))), for few rows ceil(n / (2 · block)); no dynamic shared
// memory. n is a multiple of 8; both pointers are 16-byte aligned.
#include "bf16.cuh"

using namespace awqkit;

__device__ __forceinline__ float gated(float gate, float up) {
  return gate / (1.0f + expf(-gate)) * up;
}

extern "C" __global__ void silu_mul(const u16* gate_up, u16* out, int n) {
  const int column = (blockIdx.y * blockDim.x + threadIdx.x) * 8;
  const long long row = blockIdx.x;
  let_successor_start();
  wait_for_predecessor();
  if (column >= n) return;

  const Octet gate = Octet::load(gate_up + row * 2 * n + column);
  const Octet up = Octet::load(gate_up + row * 2 * n + n + column);
  Octet product;
#pragma unroll
  for (int i = 0; i < 8; ++i) product.value[i] = gated(gate.value[i], up.value[i]);
  product.store(out + row * n + column);
}

extern "C" __global__ void silu_mul_few(const u16* gate_up, u16* out, int n) {
  const int column = (blockIdx.y * blockDim.x + threadIdx.x) * 2;
  const long long row = blockIdx.x;
  let_successor_start();
  wait_for_predecessor();
  if (column >= n) return;

  const float2 gate = load_two(gate_up + row * 2 * n + column);
  const float2 up = load_two(gate_up + row * 2 * n + n + column);
  store_two(out + row * n + column, make_float2(gated(gate.x, up.x), gated(gate.y, up.y)));
}
