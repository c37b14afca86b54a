// Rotary embedding in place on heads of BF16 numbers, after an RMS norm of each head where asked.
//
// Row t of x holds `heads` heads of head_dim numbers from its start on, the first query_heads of
// them queries, the others keys; rows lie row_stride numbers apart. Within a head the pairs
// (i, i + rotary_dim/2) turn by the angles of token t; the rest of the head stays. cos and sin are
// FP32 [rows, rotary_dim] with equal halves. The norms' weights are BF16 [head_dim]; null: no norm.
// The rotation is computed in FP32 and rounded once; the norm is rounded as rms_norm.cu does.
//
// Launch: grid (rows, ceil(heads / warps)), block (32 · warps), no dynamic shared memory.
// rotary_dim is even and at most head_dim.
#include "bf16.cuh"

using namespace awqkit;

struct HeadNorm {
  const u16* weight;
  float scale;
  bool unit_offset;

  __device__ float apply(u16 number, int i) const {
    const float x = widen(number);
    if (weight == nullptr) return x;
    return unit_offset ? rounded(x * scale * (1.0f + widen(weight[i])))
                       : rounded(rounded(x * scale) * widen(weight[i]));
  }
};

// Every lane squares just the numbers that it will write later.
__device__ float mean_square(const u16* head, int head_dim, int half, int lane) {
  float squares = 0.0f;
  for (int i = lane; i < half; i += 32) {
    const float first = widen(head[i]), second = widen(head[i + half]);
    squares += first * first + second * second;
  }
  for (int i = 2 * half + lane; i < head_dim; i += 32) {
    const float still = widen(head[i]);
    squares += still * still;
  }
  return sum_of_warp(squares) / head_dim;
}

extern "C" __global__ void rotary(u16* x, const float* cos, const float* sin,
                                  const u16* query_norm, const u16* key_norm, int row_stride,
                                  int heads, int query_heads, int head_dim, int rotary_dim,
                                  float eps, int unit_offset) {
  const int lane = threadIdx.x % 32, half = rotary_dim / 2;
  const int head_index = blockIdx.y * (blockDim.x / 32) + threadIdx.x / 32;
  const long long row = blockIdx.x;
  let_successor_start();
  wait_for_predecessor();
  if (head_index >= heads) return;

  u16* head = x + row * row_stride + static_cast<long long>(head_index) * head_dim;
  HeadNorm norm{head_index < query_heads ? query_norm : key_norm, 1.0f, unit_offset != 0};
  if (norm.weight != nullptr) {
    norm.scale = rsqrtf(mean_square(head, head_dim, half, lane) + eps);
  }
  for (int i = lane; i < half; i += 32) {
    const float first = norm.apply(head[i], i), second = norm.apply(head[i + half], i + half);
    const float c = cos[row * rotary_dim + i], s = sin[row * rotary_dim + i];
    head[i] = narrow(first * c - second * s);
    head[i + half] = narrow(second * c + first * s);
  }
  if (norm.weight == nullptr) return;
  for (int i = rotary_dim + lane; i < head_dim; i += 32) head[i] = narrow(norm.apply(head[i], i));
}
