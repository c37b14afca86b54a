#pragma once
#include <ucontext.h>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cmath>
#include <functional>
#include <map>
#include <vector>
#include <algorithm>
using std::min; using std::max;
#define __device__
#define __forceinline__ inline
#define __global__
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __grid_constant__
struct dim3_ { int x; };
struct uint2 { unsigned x, y; };
struct uint4 { unsigned x, y, z, w; };
struct float4 { float x, y, z, w; };
inline float4 make_float4(float a, float b, float c, float d) { return {a, b, c, d}; }
struct Meet { int count = 0, gen = 0; };
struct Bar { int count = 0, pending = 0; long tx = 0; unsigned phase = 0; };
struct Block { std::vector<unsigned char> memory; std::map<unsigned, Bar> bars; Meet all, named[16]; Meet warps[32]; uint32_t xch[32][32][8]; };
struct Thread { ucontext_t ctx; int block, tid; bool done = false; };
extern std::vector<Block> blocks;
extern std::vector<Meet> clusters;
extern Thread* self;
extern ucontext_t scheduler;
extern int g_threads, g_grid, g_cluster;
extern dim3_ gridDim;
inline void yield() { swapcontext(&self->ctx, &scheduler); }
inline void meet(Meet& m, int n) { int g = m.gen; if (++m.count == n) { m.count = 0; m.gen++; } else while (m.gen == g) yield(); }
inline Block& me() { return blocks[self->block]; }
inline Meet& my_warp() { return me().warps[self->tid / 32]; }
inline void __syncwarp() { meet(my_warp(), 32); }
inline void __syncthreads() { meet(me().all, g_threads); }
inline auto& xch() { return me().xch[self->tid / 32]; }
template <class T> T __shfl_sync(unsigned, T v, int lane) { xch()[self->tid % 32][0] = (uint32_t)v; __syncwarp(); T r = (T)xch()[lane][0]; __syncwarp(); return r; }
inline unsigned __cvta_generic_to_shared(const void*) { return 0x10; }
inline float __uint_as_float(unsigned u) { float f; memcpy(&f, &u, 4); return f; }
inline unsigned as_uint(float f) { unsigned u; memcpy(&u, &f, 4); return u; }
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned s) { unsigned long long ab = (unsigned long long)b << 32 | a; unsigned r = 0; for (int i = 0; i < 4; ++i) r |= (unsigned)((ab >> (8 * ((s >> (4 * i)) & 7))) & 255) << (8 * i); return r; }
inline void __stcg(float4* p, float4 v) { *p = v; }
inline void __stcg(int* p, int v) { *p = v; }
inline float4 __ldcg(const float4* p) { return *p; }
inline unsigned bf16_of(float f) { unsigned u = as_uint(f); return (u + 0x7fff + ((u >> 16) & 1)) >> 16; }
inline float of_bf16(unsigned h) { return __uint_as_float(h << 16); }
inline float half_to_float(unsigned h) { int e = (h >> 10) & 31, m = h & 1023; float f = e ? ldexpf(1024 + m, e - 25) : ldexpf(m, -24); return h & 0x8000 ? -f : f; }
inline unsigned char* shared_at(unsigned a) { unsigned r = a >> 24; int b = r ? self->block / g_cluster * g_cluster + r - 1 : self->block; return &blocks[b].memory.at(a & 0xffffff); }
inline Bar& bar_at(unsigned a) { unsigned r = a >> 24; int b = r ? self->block / g_cluster * g_cluster + r - 1 : self->block; return blocks[b].bars.at(a & 0xffffff); }
inline void settle(Bar& b) { if (b.pending == 0 && b.tx == 0) { b.phase ^= 1; b.pending = b.count; } if (b.pending < 0) { puts("barrier underflow"); abort(); } }

inline dim3_ thread_index() { return {self->tid}; }
inline dim3_ block_index() { return {self->block}; }
#define threadIdx thread_index()
#define blockIdx block_index()
