#include "isa.h"

namespace awqkit {

bool isa_supported(Isa isa) {
    if (isa == Isa::kScalar) return true;
#ifdef AWQKIT_X86_VARIANTS
    // The compiler's test also asks the operating system whether it saves the wide registers.
    // F16C needs no test of its own: no processor has AVX2 without it.
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (isa == Isa::kAvx2) return avx2;
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    if (isa == Isa::kAvx512) return avx512;
    if (isa == Isa::kAvx512Bf16) return avx512 && __builtin_cpu_supports("avx512bf16");
#endif
    return false;
}

}  // namespace awqkit

AWQKIT_EXPORT int32_t awqkit_abi_version() { return awqkit::kAbiVersion; }

AWQKIT_EXPORT int32_t awqkit_isa_supported(awqkit::Isa isa) { return awqkit::isa_supported(isa); }
