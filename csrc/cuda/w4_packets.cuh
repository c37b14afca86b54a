// Sums that blocks anywhere on the GPU send each other through memory, each in one trip.
//
// A packet is a number below the mark of the launch that it belongs to, written and read as one word of
// 64 bits: whoever sees the mark has the number, so nothing is fenced and no flag follows. Every launch
// has a mark of its own, which the launches count themselves, so that a replayed graph counts on.
#pragma once

namespace w4 {

using u32 = unsigned int;
using u64 = unsigned long long;

struct alignas(16) Packets {
  u64 first, second;
};

__device__ __forceinline__ Packets marked(float first, float second, u32 mark) {
  return {u64(mark) << 32 | __float_as_uint(first), u64(mark) << 32 | __float_as_uint(second)};
}

__device__ __forceinline__ bool has_mark(const Packets& packets, u32 mark) {
  return u32(packets.first >> 32) == mark && u32(packets.second >> 32) == mark;
}

__device__ __forceinline__ float first_of(const Packets& packets) {
  return __uint_as_float(u32(packets.first));
}

__device__ __forceinline__ float second_of(const Packets& packets) {
  return __uint_as_float(u32(packets.second));
}

__device__ __forceinline__ void store_packets(Packets* to, const Packets& packets) {
  asm volatile("st.relaxed.gpu.global.v2.u64 [%0], {%1, %2};" ::"l"(to), "l"(packets.first),
               "l"(packets.second)
               : "memory");
}

__device__ __forceinline__ Packets load_packets(const Packets* from) {
  Packets packets;
  asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];"
               : "=l"(packets.first), "=l"(packets.second)
               : "l"(from)
               : "memory");
  return packets;
}

// marks: how many teams of this launch have read its mark, and the last launch's mark. To be read when
// the launches before this one have ended.
__device__ __forceinline__ u32 mark_of_launch(const int* marks) {
  return static_cast<u32>(__ldcg(marks + 1)) + 1;
}

// Once for each of `teams`, all whose threads have read the mark: the last one leaves it to the next
// launch.
__device__ __forceinline__ void pass_mark(int* marks, u32 mark, int teams) {
  if (atomicAdd(marks, 1) + 1 < teams) return;
  marks[0] = 0;
  marks[1] = static_cast<int>(mark);
}

}  // namespace w4
