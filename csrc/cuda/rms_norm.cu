// sum = x + delta and out = rms_norm(sum) · weight, row by row, all BF16 [rows, n].
//
// The sum is rounded to BF16 before it is normalised, and the normalised value before the weight
// multiplies it, as the models were trained; with unit_offset the factor is 1 + weight and that
// product is taken in FP32. Without delta (null) nothing is added and no sum is written.
//
// A thread fetches its weights before the predecessor ends, since they come from memory while x lies
// in L2, and keeps what it has read for the norm; only where a block is too small for a row does it
// read the rest again.
// Launch: grid (rows), block (a multiple of 32 up to 1024), no dynamic shared memory.
// n is a multiple of 8; all pointers are 16-byte aligned.
#include "rms_norm.cuh"

using namespace awqkit;

extern "C" __global__ void __launch_bounds__(1024)
    rms_norm(const u16* x, const u16* delta, const u16* weight, u16* sum, u16* out, int n,
             float eps, int unit_offset) {
  const long long row = static_cast<long long>(blockIdx.x) * n;
  const int first = threadIdx.x * 8, stride = blockDim.x * 8;
  const bool has_first = first < n;
  let_successor_start();
  Octet first_weight{}, first_value{};
  if (has_first) first_weight = Octet::load(weight + first);
  wait_for_predecessor();

  const auto read = [&](int i) {
    Octet value = Octet::load(x + row + i);
    if (delta != nullptr) {
      const Octet added = Octet::load(delta + row + i);
#pragma unroll
      for (int j = 0; j < 8; ++j) value.value[j] = rounded(value.value[j] + added.value[j]);
      value.store(sum + row + i);
    }
    return value;
  };
  float squares = 0.0f;
  const auto add_squares = [&](const Octet& value) {
#pragma unroll
    for (int j = 0; j < 8; ++j) squares += value.value[j] * value.value[j];
  };
  if (has_first) {
    first_value = read(first);
    add_squares(first_value);
  }
  for (int i = first + stride; i < n; i += stride) add_squares(read(i));
  const float scale = rsqrtf(sum_of_block(squares) / n + eps);

  if (has_first)
    normalised(first_value, first_weight, scale, unit_offset).store(out + row + first);
  // Each thread reads again what it read or wrote itself.
  const u16* normed = delta == nullptr ? x : sum;
  for (int i = first + stride; i < n; i += stride) {
    const Octet value = Octet::load(normed + row + i);
    normalised(value, Octet::load(weight + i), scale, unit_offset).store(out + row + i);
  }
}
