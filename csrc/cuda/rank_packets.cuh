// Small messages between the GPUs of a host, each rank's kernel writing into the memory of the others.
//
// A packet is a word of data below the number of the meeting that it belongs to, written and read as
// one, so whoever sees the number has the data: no fence, no flag behind it, one trip. Each meeting
// has a number of its own, which all ranks count by themselves, in memory, so that a replayed graph
// counts on; 0 is never one, which is what the memory holds at first.
//
// Slots of even and of odd meetings differ. A rank that writes into a slot has passed the meeting
// before, where it got what the others sent after they had read that slot's last content. So one
// meeting is enough, and none of the ranks is ever more than one ahead.
#pragma once

#include "bf16.cuh"

namespace awqkit {

using u64 = unsigned long long;

constexpr int kMostRanks = 8;
// Looks at a slot between two at the host's word: some milliseconds.
constexpr u32 kLooks = 1u << 12;

// inbox: of each rank, as this device reaches it, [2, num_ranks, places] pairs of packets; slot
// [parity, r] is what rank r sends. given_up: not 0 where the host says that a rank is gone: then
// nothing is waited for, and what comes out means nothing.
struct Ranks {
  ulonglong2* inbox[kMostRanks];
  const int* given_up;
  int rank;
  int num_ranks;
};

__device__ __forceinline__ u32 next_meeting(u32 last) {
  // After 2^32 - 1, which is odd, an even one.
  return last == 0xffffffffu ? 2u : last + 1;
}

__device__ __forceinline__ u64 packet(u32 word, u32 meeting) {
  return u64(meeting) << 32 | word;
}

__device__ __forceinline__ void store_packets(ulonglong2* to, ulonglong2 packets) {
  asm volatile("st.relaxed.sys.global.v2.u64 [%0], {%1, %2};" ::"l"(to), "l"(packets.x),
               "l"(packets.y)
               : "memory");
}

__device__ __forceinline__ ulonglong2 load_packets(const ulonglong2* from) {
  ulonglong2 packets;
  asm volatile("ld.relaxed.sys.global.v2.u64 {%0, %1}, [%2];"
               : "=l"(packets.x), "=l"(packets.y)
               : "l"(from)
               : "memory");
  return packets;
}

__device__ __forceinline__ int load_word_of_host(const int* from) {
  int word;
  asm volatile("ld.relaxed.sys.global.s32 %0, [%1];" : "=r"(word) : "l"(from) : "memory");
  return word;
}

// One meeting, of places that a rank's slot has.
class Meeting {
 public:
  __device__ __forceinline__ Meeting(const Ranks& ranks, u32 number, long long places)
      : ranks_(ranks), number_(number), places_(places) {}

  // Two words for a place, to all others.
  __device__ __forceinline__ void send(long long place, u32 first, u32 second) const {
    const ulonglong2 packets{packet(first, number_), packet(second, number_)};
    for (int r = 0; r < ranks_.num_ranks; ++r) {
      if (r != ranks_.rank) store_packets(slot(r, ranks_.rank) + place, packets);
    }
  }

  __device__ __forceinline__ ulonglong2 look(int from, long long place) const {
    return load_packets(slot(ranks_.rank, from) + place);
  }

  __device__ __forceinline__ bool has_come(ulonglong2 packets) const {
    return u32(packets.x >> 32) == number_ && u32(packets.y >> 32) == number_;
  }

  // Looks again until both have come.
  __device__ __forceinline__ void wait_for(ulonglong2& packets, int from, long long place) const {
    for (u32 looks = 1; !has_come(packets); ++looks) {
      if (looks % kLooks == 0 && load_word_of_host(ranks_.given_up) != 0) return;
      packets = look(from, place);
    }
  }

 private:
  __device__ __forceinline__ ulonglong2* slot(int at, int from) const {
    return ranks_.inbox[at] + ((number_ & 1) * ranks_.num_ranks + from) * places_;
  }

  const Ranks& ranks_;
  const u32 number_;
  const long long places_;
};

}  // namespace awqkit
