// Rotary embedding in place on heads of BF16 numbers, after an RMS norm of each head where asked.
//
// Row t of x holds `heads` heads of head_dim numbers from its start on, the first query_heads of
// them queries, the others keys; rows lie row_stride numbers apart. cos and sin are FP32
// [rows, rotary_dim]. The norms' weights are BF16 [head_dim]; null: no norm. See rotary_turn.cuh.
//
// A warp takes heads_a_warp heads of one row and keeps the angles meanwhile.
// Launch: grid (rows, ceil(heads / (warps * heads_a_warp))), block (32 * warps), no dynamic shared
// memory. row_stride is even; x is 4-byte aligned.
#include "rotary_turn.cuh"

using namespace awqkit;

extern "C" __global__ void rotary(u16* x, const float* cos, const float* sin,
                                  const u16* query_norm, const u16* key_norm, int row_stride,
                                  int heads, int query_heads, int head_dim, int rotary_dim,
                                  int heads_a_warp, float eps, int unit_offset) {
  const int lane = threadIdx.x % 32;
  const int warp = blockIdx.y * (blockDim.x / 32) + threadIdx.x / 32;
  const long long row = blockIdx.x;
  let_successor_start();
  wait_for_predecessor();

  const Angles angles(cos + row * rotary_dim, sin + row * rotary_dim, rotary_dim / 2, lane);
  const int end = min(heads, (warp + 1) * heads_a_warp);
  for (int index = warp * heads_a_warp; index < end; ++index) {
    const HeadNorm norm{index < query_heads ? query_norm : key_norm, eps, unit_offset != 0};
    u16* head = x + row * row_stride + static_cast<long long>(index) * head_dim;
    turn_head(head, angles, norm, head_dim, lane);
  }
}
