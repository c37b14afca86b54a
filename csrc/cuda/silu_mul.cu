// out = silu(gate) · up for gate_up BF16 [rows, 2n] (gate first), out BF16 [rows, n].
//
// Computed in FP32 and rounded once.
// Launch: grid (rows, ceil(n / (8 · block))), no dynamic shared memory. n is a multiple of 8;
// both pointers are 16-byte aligned.
#include "bf16.cuh"

using namespace awqkit;

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
  for (int i = 0; i < 8; ++i) {
    const float x = gate.value[i];
    product.value[i] = x / (1.0f + expf(-x)) * up.value[i];
  }
  product.store(out + row * n + column);
}
