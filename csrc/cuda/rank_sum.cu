// sum = x + (the ranks' parts, added up) and out = rms_norm(sum) · weight, row by row, BF16 [rows, n].
//
// Each rank has a part of a linear's output, and gets those of the others (rank_packets.cuh). All add
// the parts in the order of the ranks, in FP32, and round the result to BF16 as a linear does; so all
// ranks have the same bits. From there on it is rms_norm.cu. Without weight (null) the parts are only
// added up, into out.
//
// A row has a count of its meetings: meetings [max_rows]. It takes part with n / 4 places, in the
// first of which lies the first half of each 16 bytes, so that neighbours write neighbouring places.
// A thread sends all that it has before it waits for anything.
// Launch: grid (rows), block (a multiple of 32 up to 1024), no dynamic shared memory; one stream.
// n is a multiple of 8; all pointers are 16-byte aligned.
#include "rank_packets.cuh"
#include "rms_norm.cuh"

using namespace awqkit;

__device__ __forceinline__ uint4 load_words(const u16* from) {
  return *reinterpret_cast<const uint4*>(from);
}

__device__ __forceinline__ void add(Octet& sum, uint4 words) {
  const u32 word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 two = widen_two(word[i]);
    sum.value[2 * i] += two.x;
    sum.value[2 * i + 1] += two.y;
  }
}

// Of a row: octet i's places are first + i and first + octets + i.
struct Row {
  const Meeting& meeting;
  long long first;
  int octets;

  __device__ __forceinline__ void send(int octet, uint4 words) const {
    meeting.send(first + octet, words.x, words.y);
    meeting.send(first + octets + octet, words.z, words.w);
  }

  __device__ __forceinline__ uint4 receive(int from, int octet) const {
    const long long low = first + octet, high = low + octets;
    ulonglong2 a = meeting.look(from, low), b = meeting.look(from, high);
    meeting.wait_for(a, from, low);
    meeting.wait_for(b, from, high);
    return make_uint4(u32(a.x), u32(a.y), u32(b.x), u32(b.y));
  }

  // Of all ranks, own: this one's part.
  __device__ __forceinline__ Octet sum(const Ranks& ranks, int octet, uint4 own) const {
    Octet sum{};
    for (int r = 0; r < ranks.num_ranks; ++r) add(sum, r == ranks.rank ? own : receive(r, octet));
#pragma unroll
    for (int i = 0; i < 8; ++i) sum.value[i] = rounded(sum.value[i]);
    return sum;
  }
};

extern "C" __global__ void __launch_bounds__(1024)
    rank_sum(const __grid_constant__ Ranks ranks, u32* meetings, int max_rows, const u16* part,
             const u16* x, const u16* weight, u16* total, u16* out, int n, float eps,
             int unit_offset) {
  const long long begin = static_cast<long long>(blockIdx.x) * n;
  const int octets = n / 8, first = threadIdx.x;
  const bool has_first = first < octets;
  let_successor_start();
  Octet first_weight{};
  if (has_first && weight != nullptr) first_weight = Octet::load(weight + first * 8);
  wait_for_predecessor();

  uint4 first_part{};
  Octet first_value{};
  if (has_first) {
    first_part = load_words(part + begin + first * 8);
    if (weight != nullptr) first_value = Octet::load(x + begin + first * 8);
  }
  const u32 number = next_meeting(meetings[blockIdx.x]);
  const Meeting meeting(ranks, number, static_cast<long long>(max_rows) * octets * 2);
  const Row row{meeting, static_cast<long long>(blockIdx.x) * octets * 2, octets};
  if (has_first) row.send(first, first_part);
  for (int i = first + blockDim.x; i < octets; i += blockDim.x)
    row.send(i, load_words(part + begin + i * 8));

  if (weight == nullptr) {
    if (has_first) row.sum(ranks, first, first_part).store(out + begin + first * 8);
    for (int i = first + blockDim.x; i < octets; i += blockDim.x)
      row.sum(ranks, i, load_words(part + begin + i * 8)).store(out + begin + i * 8);
    __syncthreads();
    if (threadIdx.x == 0) meetings[blockIdx.x] = number;
    return;
  }

  float squares = 0.0f;
  if (has_first) {
    first_value = sum_of_octets(first_value, row.sum(ranks, first, first_part));
    first_value.store(total + begin + first * 8);
    add_squares(squares, first_value);
  }
  for (int i = first + blockDim.x; i < octets; i += blockDim.x) {
    const Octet parts = row.sum(ranks, i, load_words(part + begin + i * 8));
    const Octet value = sum_of_octets(Octet::load(x + begin + i * 8), parts);
    value.store(total + begin + i * 8);
    add_squares(squares, value);
  }
  const float scale = rsqrtf(sum_of_block(squares) / n + eps);  // All threads have the number now.
  if (threadIdx.x == 0) meetings[blockIdx.x] = number;
  if (has_first)
    normalised(first_value, first_weight, scale, unit_offset).store(out + begin + first * 8);
  for (int i = first + blockDim.x; i < octets; i += blockDim.x) {
    const Octet value = Octet::load(total + begin + i * 8);
    normalised(value, Octet::load(weight + i * 8), scale, unit_offset).store(out + begin + i * 8);
  }
}
