// Splits one w4_linear over the threads and hands each piece to the chosen variant.
#include "w4_linear.h"

#include <atomic>
#include <cstdlib>

#include "isa.h"

namespace awqkit {
namespace {

// Below this many multiplications a second thread costs more than it saves.
constexpr int64_t kSerialMultiplications = 200'000;
// More pieces than threads, so that a thread that was held up leaves its share to the others.
constexpr int64_t kPiecesPerThread = 4;
constexpr int64_t kMaxStripBlocks = 4;

struct Job {
    const W4Linear* call;
    W4LinearVariant variant;
    int64_t pieces;
    std::atomic<int64_t> next_piece{0};
};

void work_on(void* data) {
    Job& job = *static_cast<Job*>(data);
    const W4Linear& call = *job.call;
    Workspace workspace{std::aligned_alloc(64, workspace_bytes(call))};
    if (workspace.memory == nullptr) return;  // the other threads take this one's pieces
    const int64_t items = call.items();
    for (int64_t piece = job.next_piece++; piece < job.pieces; piece = job.next_piece++) {
        job.variant(call, workspace, piece * items / job.pieces,
                    (piece + 1) * items / job.pieces);
    }
    std::free(workspace.memory);
}

W4LinearVariant variant_of([[maybe_unused]] Isa isa, [[maybe_unused]] DType dtype) {
#ifdef AWQKIT_X86_VARIANTS
    if (isa == Isa::kAvx512Bf16 && dtype == DType::kBFloat16) return w4_linear_avx512_bf16;
    if (isa == Isa::kAvx512Bf16 || isa == Isa::kAvx512) return w4_linear_avx512;
    if (isa == Isa::kAvx2) return w4_linear_avx2;
#endif
    return w4_linear_scalar;
}

// Wide strips use the registers best, but every thread should get one.
int64_t strip_blocks(const W4Linear& call, int64_t threads) {
    int64_t blocks = kMaxStripBlocks;
    while (blocks > 1 && call.chunks() * call.blocks() < blocks * threads) blocks /= 2;
    return blocks;
}

Status run(W4Linear call, Isa isa, int32_t threads, ParallelRegion parallel_region) {
    const int64_t multiplications = call.tokens * call.out_features * call.in_features;
    if (parallel_region == nullptr || multiplications < kSerialMultiplications) threads = 1;
    call.strip_blocks = strip_blocks(call, threads);
    const int64_t pieces = threads == 1 ? 1 : smaller(call.items(), threads * kPiecesPerThread);
    Job job{&call, variant_of(isa, call.dtype), pieces};
    if (threads == 1) {
        work_on(&job);
    } else {
        parallel_region(work_on, &job, unsigned(threads), 0);
    }
    return job.next_piece < job.pieces ? Status::kOutOfMemory : Status::kOk;
}

}  // namespace
}  // namespace awqkit

AWQKIT_EXPORT awqkit::Status awqkit_w4_linear(awqkit::Isa isa, awqkit::DType dtype, const void* x,
                                              const uint32_t* codes, const uint8_t* group_params,
                                              const void* bias, void* out, int64_t tokens,
                                              int64_t out_features, int64_t in_features,
                                              int32_t threads,
                                              awqkit::ParallelRegion parallel_region) {
    if (!awqkit::isa_supported(isa)) return awqkit::Status::kUnsupportedIsa;
    const awqkit::W4Linear call{dtype, x,      codes,        group_params, bias,
                                out,   tokens, out_features, in_features,  1};
    return awqkit::run(call, isa, threads, parallel_region);
}
