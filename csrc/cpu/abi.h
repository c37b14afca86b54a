// The plain C interface of the CPU library; awqkit_runtime/kernels/native.py is its only caller.
#pragma once

#include <cstdint>

#define AWQKIT_EXPORT extern "C" __attribute__((visibility("default")))

namespace awqkit {

// Raised with every change of a signature, an enum or the packed layout.
constexpr int32_t kAbiVersion = 1;

enum class Isa : int32_t { kScalar = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Bf16 = 3 };

enum class DType : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

enum class Status : int32_t { kOk = 0, kOutOfMemory = 1, kUnsupportedIsa = 2 };

// OpenMP's own entry point for `#pragma omp parallel`, taken from the runtime that torch has
// loaded: its threads are then ours too, and two pools never compete for the cores.
using ParallelRegion = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);

}  // namespace awqkit

AWQKIT_EXPORT int32_t awqkit_abi_version();

// 1 when this library holds the variant and this processor can run it.
AWQKIT_EXPORT int32_t awqkit_isa_supported(awqkit::Isa isa);

// out[t, n] = sum_k x[t, k] * (code[n, k] - zero[n, k/128]) * scale[n, k/128] + bias[n].
// x, bias and out are dense and of one dtype; bias may be null; parallel_region may be null.
AWQKIT_EXPORT awqkit::Status awqkit_w4_linear(awqkit::Isa isa, awqkit::DType dtype, const void* x,
                                              const uint32_t* codes, const uint8_t* group_params,
                                              const void* bias, void* out, int64_t tokens,
                                              int64_t out_features, int64_t in_features,
                                              int32_t threads,
                                              awqkit::ParallelRegion parallel_region);
