#include "emu.h"
struct float2 { float x, y; };
inline unsigned __shfl_xor_sync(unsigned, unsigned v, int m) { xch()[self->tid % 32][0] = v; __syncwarp(); unsigned r = xch()[(self->tid % 32) ^ m][0]; __syncwarp(); return r; }
inline void __threadfence() { yield(); }
inline int atomicAdd(int* p, int v) { yield(); int o = *p; *p += v; return o; }
static std::vector<std::pair<const char*, size_t>> ranges;
inline uint4 __ldcg(const uint4* p);
inline float2 __ldcg(const float2* p) { return *p; }
inline void __stcg(float2* p, float2 v) { *p = v; }
#include "w4_chain.cu"
#include <random>
namespace w4_decode { bool in_range(const void* p, size_t n) { for (auto& r : ranges) if ((const char*)p >= r.first && (const char*)p + n <= r.first + r.second) return true; return false; } }
inline uint4 __ldcg(const uint4* p) { if (!w4_decode::in_range(p, 16) || (size_t)p % 16) { puts("bad x load"); abort(); } return *p; }
std::vector<Block> blocks; std::vector<Meet> clusters; Thread* self; ucontext_t scheduler; int g_threads, g_grid, g_cluster = 1; dim3_ gridDim;
using namespace w4_chain;
static std::function<void()> entry;
static void start() { entry(); self->done = true; swapcontext(&self->ctx, &scheduler); }
int main(int argc, char** argv) {
  int m = atoi(argv[1]), grid = atoi(argv[2]), launches = 2; std::vector<std::array<int, 3>> shapes; // n, k, slices
  for (int i = 3; i + 2 < argc; i += 3) shapes.push_back({atoi(argv[i]), atoi(argv[i + 1]), atoi(argv[i + 2])});
  std::mt19937 rng(1); std::normal_distribution<float> normal;
  auto half_bits = [](float f) { u32 u = as_uint(f); int e = (u >> 23 & 255) - 127 + 15; return e << 10 | (u >> 13 & 1023); };
  Chain chain; chain.count = shapes.size(); chain.m = m; int most = 0; size_t ws = 0;
  std::vector<unsigned short*> ys; unsigned short* x = (unsigned short*)aligned_alloc(256, (m * shapes[0][1] * 2 + 255) / 256 * 256); for (int i = 0; i < m * shapes[0][1]; ++i) x[i] = bf16_of(normal(rng)); ranges.push_back({(char*)x, (size_t)m * shapes[0][1] * 2});
  std::vector<u32*> cs, ps;
  for (size_t l = 0; l < shapes.size(); ++l) { auto [n, k, slices] = shapes[l]; int tiles = (n + 15) / 16; most = max(most, tiles); ws = max(ws, (size_t)tiles * slices * 64);
    size_t nc = (size_t)tiles * (k / 64) * 128, np = (size_t)tiles * (k / 128) * 16; u32* c = (u32*)aligned_alloc(256, (nc * 4 + 255) / 256 * 256); u32* p = (u32*)aligned_alloc(256, (np * 4 + 255) / 256 * 256);
    for (size_t i = 0; i < nc; ++i) c[i] = rng(); for (size_t i = 0; i < np; ++i) p[i] = half_bits(0.001f + 0.006f * (rng() % 1000) / 1000) | (0x4300 | rng() % 16) << 16;
    unsigned short* y = (unsigned short*)aligned_alloc(256, (m * n * 2 + 255) / 256 * 256); for (int i = 0; i < m * n; ++i) y[i] = 0x7fc0;
    ranges.push_back({(char*)c, nc * 4}); ranges.push_back({(char*)p, np * 4}); ranges.push_back({(char*)y, (size_t)m * n * 2});
    chain.linear[l] = {(unsigned char*)c, (unsigned char*)p, l ? ys[l - 1] : x, nullptr, y, n, k, slices}; ys.push_back(y); cs.push_back(c); ps.push_back(p); }
  std::vector<float2> workspace(ws, float2{NAN, NAN}); std::vector<int> meetings(4, 0), tickets(32, 0), arrived(most, 0);
  g_threads = kThreads; g_grid = grid; gridDim.x = grid; bool bad = false;
  for (int launch = 0; launch < launches; ++launch) {
    if (launch) for (size_t l = 0; l < shapes.size(); ++l) for (int i = 0; i < m * shapes[l][0]; ++i) ys[l][i] = 0x7fc0;
    blocks.clear(); blocks.resize(grid); for (auto& b : blocks) b.memory.assign(kRing + kStages * kStageBytes + 0x100, 0xff);
    entry = [&] { w4_chain_kernel(chain, workspace.data(), meetings.data(), tickets.data(), arrived.data()); };
    std::vector<Thread> threads((size_t)grid * kThreads); size_t stack = 32768; std::vector<char> stacks(threads.size() * stack);
    for (size_t i = 0; i < threads.size(); ++i) { auto& t = threads[i]; t.block = i / kThreads; t.tid = i % kThreads; getcontext(&t.ctx); t.ctx.uc_stack = {stacks.data() + i * stack, 0, stack}; t.ctx.uc_link = nullptr; makecontext(&t.ctx, start, 0); }
    size_t left = threads.size(); long rounds = 0;
    while (left) { left = 0; if (++rounds > 200000) { puts("DEADLOCK"); return 1; } for (auto& t : threads) if (!t.done) { ++left; self = &t; swapcontext(&scheduler, &t.ctx); } }
    for (size_t l = 0; l < shapes.size(); ++l) { auto [n, k, slices] = shapes[l]; double e = 0, r = 0; const unsigned short* in = chain.linear[l].x;
      for (int j = 0; j < m; ++j) for (int i = 0; i < n; ++i) { double s = 0; for (int c = 0; c < k; ++c) { int tile = i / 16, rr = i % 16, cc = c % 64, st = cc / 16, w = cc % 16; int lane = rr % 8 * 4 + w % 8 / 2, p = rr / 8 + 2 * (w / 8), nib = p + 4 * (w % 2);
          int code = cs[l][((size_t)tile * (k / 64) + c / 64) * 128 + lane * 4 + st] >> (4 * nib) & 15; u32 pw = ps[l][((size_t)tile * (k / 128) + c / 128) * 16 + 2 * (rr % 8) + rr / 8]; s += (double)(code - (int)(pw >> 16 & 15)) * half_to_float(pw & 0xffff) * of_bf16(in[j * k + c]); }
        double d = of_bf16(ys[l][j * n + i]) - s; e += d * d; r += s * s; }
      double rel = sqrt(e / r); bad |= !(rel < 2e-3); printf("launch %d linear %zu [%d, %d] slices %d: %.2e %s\n", launch, l, n, k, slices, rel, rel < 2e-3 ? "ok" : "WRONG"); }
    for (int v : meetings) bad |= v; for (int v : tickets) bad |= v; for (int v : arrived) bad |= v; if (bad) puts("BAD"); }
  return bad; }
