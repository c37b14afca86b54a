// What attention needs of new tokens, in one kernel: queries and keys normed, turned and laid
// in the key frame, keys and values stored in the pages.
//
// Row t of qkv holds query_heads queries, kv_heads keys and kv_heads values of HEAD_DIM BF16 numbers;
// rows lie row_stride numbers apart. Queries and keys are normed and turned (head_turn.cuh) and
// rounded to BF16; then they are laid in the frame in FP32 (kv_vector.cuh). Queries are written in
// place, and so are keys: turned, or as the pages hold them where these are dense. Keys and values
// go to slots[t] = page * 64 + offset, and nowhere where that is negative: as codes of 8 or 4 bits
// (kv_codes.cuh), or as BF16 for 16.
//
//   keys, values   [pages, kv_heads, 64, HEAD_DIM * bits / 8] bytes
//   params         [pages, 2 * kv_heads, 64] pairs of FP16: scale, minimum; keys, then values
//   mean, channel_scale   FP32 [kv_heads, HEAD_DIM] or null
//
// A group of lanes takes heads_a_group heads of one kind of one row, and fetches the next one while
// it works on one. All but qkv is fetched before the predecessor ends: a launch without overlap must lie
// between what wrote cos, sin and slots and this one (docs/kernels.md), as the embedding does.
// A head goes through registers from its one load to its stores, and its bits do not depend on how
// many rows there are.
// Launch: grid (ceil(rows * units / warps)), where a unit is a warp's work: heads_a_group * 32 / lanes
// heads of one kind; block (32 * warps), no dynamic shared memory. row_stride is a multiple of 4; qkv
// is 8-byte aligned, cos, sin and the pages 16-byte.
#include "head_turn.cuh"
#include "kv_codes.cuh"

using namespace awqkit;

using Layout = HeadLayout<HEAD_DIM>;
using Words = HeadWords<HEAD_DIM>;
using Vector = HeadVector<HEAD_DIM>;

constexpr int kPageTokens = 64;
constexpr int kDenseBits = 16;

// Of the frame, where it has such vectors.
__device__ __forceinline__ const float* of_head(const float* vectors, int kv) {
  return vectors == nullptr ? nullptr : vectors + kv * HEAD_DIM;
}
__device__ __forceinline__ void prefetch_head(const float* vectors, int kv, int lane) {
  if (vectors != nullptr) prefetch(of_head(vectors, kv) + HEAD_DIM / Layout::kLanes * lane);
}

// The vectors of all heads of one kind, with their parameters.
struct Store {
  unsigned char* vectors;
  u32* params;
  int bits, kv_heads, first_params;

  // Where bits is kDenseBits.
  __device__ __forceinline__ void put(const Words& words, long long slot, int kv, int lane) const {
    words.store(reinterpret_cast<u16*>(vector(slot, kv)), lane);
  }

  // Every lane of the warp takes part; heads that are not `active` leave nothing.
  __device__ __forceinline__ void put_codes(const Vector& numbers, long long slot, int kv,
                                            bool active, int lane) const {
    const HeadCodes<HEAD_DIM> codes(numbers, bits);
    codes.store(vector(slot, kv), bits, active, lane);
    if (active && lane == 0) params[run(slot, 2 * kv_heads, first_params + kv)] = codes.params;
  }

 private:
  __device__ __forceinline__ unsigned char* vector(long long slot, int kv) const {
    return vectors + run(slot, kv_heads, kv) * (HEAD_DIM * bits / 8);
  }
  // Of a token's vector, counted over pages, heads and tokens.
  __device__ __forceinline__ static long long run(long long slot, int heads, int head) {
    return (slot / kPageTokens * heads + head) * kPageTokens + slot % kPageTokens;
  }
};

// A warp's heads of one kind: `count` heads that lie one after the other, of which this lane's group
// takes every kHeadsAWarp-th from `first` on. A group may have fewer than another, or none.
struct Run {
  u16* heads;
  int first, count, rounds, lane;

  __device__ __forceinline__ Run(u16* heads, int unit, int total, int heads_a_group)
      : heads(heads), lane(threadIdx.x % Layout::kLanes) {
    const int start = unit * heads_a_group * Layout::kHeadsAWarp;
    const int group = threadIdx.x % 32 / Layout::kLanes;
    first = start + group;
    count = total;
    rounds = min(heads_a_group, (total - start + Layout::kHeadsAWarp - 1) / Layout::kHeadsAWarp);
  }

  __device__ __forceinline__ int head(int round) const {
    return first + round * Layout::kHeadsAWarp;
  }
  __device__ __forceinline__ bool active(int round) const { return head(round) < count; }
  // Any head where the group has none.
  __device__ __forceinline__ int some_head(int round) const { return min(head(round), count - 1); }
  __device__ __forceinline__ u16* at(int round) const { return heads + head(round) * HEAD_DIM; }

  // work(what was fetched of a head, round), the next head being fetched meanwhile.
  template <typename Fetch, typename Work>
  __device__ __forceinline__ void walk(Fetch fetch, Work work) const {
    decltype(fetch(at(0))) next{};
    if (active(0)) next = fetch(at(0));
    for (int round = 0; round < rounds; ++round) {
      const auto now = next;
      if (round + 1 < rounds && active(round + 1)) next = fetch(at(round + 1));
      work(now, round);
    }
  }
};

template <typename Turn>
__device__ __forceinline__ void lay_queries(const Run& run, const Turn& turn, const HeadNorm& of,
                                            const Frame& frame, int heads_a_key) {
  const FetchedNorm<HEAD_DIM, Turn> norm(turn, of, run.lane);
  prefetch_head(frame.channel_scale, run.some_head(0) / heads_a_key, run.lane);
  wait_for_predecessor();
  run.walk([&](const u16* head) { return turn.fetch(head, run.lane); },
           [&](const typename Turn::Fetched& head, int round) {
             Words words = turn.turned(head, norm);
             if (frame.moves_queries()) {
               const int kv = run.some_head(round) / heads_a_key;
               Vector vector(words);
               vector.lay_query(of_head(frame.channel_scale, kv), frame.rotated, run.lane);
               words = vector.words();
             }
             if (run.active(round)) words.store(run.at(round), run.lane);
           });
}

template <typename Turn>
__device__ __forceinline__ void store_keys(const Run& run, const Turn& turn, const HeadNorm& of,
                                           const Frame& frame, const Store& store, long long slot) {
  const FetchedNorm<HEAD_DIM, Turn> norm(turn, of, run.lane);
  prefetch_head(frame.mean, run.some_head(0), run.lane);
  prefetch_head(frame.channel_scale, run.some_head(0), run.lane);
  const bool dense = store.bits == kDenseBits;
  wait_for_predecessor();
  run.walk([&](const u16* head) { return turn.fetch(head, run.lane); },
           [&](const typename Turn::Fetched& head, int round) {
             const bool active = run.active(round);
             const int kv = run.some_head(round);
             Words words = turn.turned(head, norm);
             Vector vector(words);
             if (frame.moves_keys()) {
               vector.lay_key(of_head(frame.mean, kv), of_head(frame.channel_scale, kv),
                              frame.rotated, run.lane);
               if (dense) words = vector.words();
             }
             if (active) words.store(run.at(round), run.lane);
             if (slot < 0) return;
             if (!dense)
               store.put_codes(vector, slot, kv, active, run.lane);
             else if (active)
               store.put(words, slot, kv, run.lane);
           });
}

__device__ __forceinline__ void store_values(const Run& run, const Store& store, long long slot) {
  wait_for_predecessor();
  if (slot < 0) return;
  run.walk([&](const u16* head) { return Words::load(head, run.lane); },
           [&](const Words& words, int round) {
             const bool active = run.active(round);
             if (store.bits != kDenseBits)
               store.put_codes(Vector(words), slot, run.some_head(round), active, run.lane);
             else if (active)
               store.put(words, slot, run.head(round), run.lane);
           });
}

struct Heads {
  int query_heads, kv_heads, a_group;

  __device__ __forceinline__ int units(int heads) const {
    const int a_unit = a_group * Layout::kHeadsAWarp;
    return (heads + a_unit - 1) / a_unit;
  }
};

// What this warp works on.
struct Place {
  int row, unit;

  __device__ __forceinline__ explicit Place(const Heads& heads) {
    const int units = heads.units(heads.query_heads) + 2 * heads.units(heads.kv_heads);
    const int warp = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    row = warp / units, unit = warp % units;
  }
};

template <typename Turn>
__device__ __forceinline__ void work_on(u16* row, int unit, const Heads& heads, const Turn& turn,
                                        const HeadNorm& query_norm, const HeadNorm& key_norm,
                                        const Frame& frame, const Store& keys, const Store& values,
                                        long long slot) {
  const int query_units = heads.units(heads.query_heads), kv_units = heads.units(heads.kv_heads);
  u16* const first_key = row + heads.query_heads * HEAD_DIM;
  if (unit < query_units) {
    const Run run(row, unit, heads.query_heads, heads.a_group);
    lay_queries(run, turn, query_norm, frame, heads.query_heads / heads.kv_heads);
  } else if (unit < query_units + kv_units) {
    const Run run(first_key, unit - query_units, heads.kv_heads, heads.a_group);
    store_keys(run, turn, key_norm, frame, keys, slot);
  } else {
    u16* const first_value = first_key + heads.kv_heads * HEAD_DIM;
    const Run run(first_value, unit - query_units - kv_units, heads.kv_heads, heads.a_group);
    store_values(run, values, slot);
  }
}

// BLOCKS: of four warps on an SM, for registers; many rows need many loads in flight.
#define ROTARY_APPEND(NAME, TURN, BLOCKS)                                                          \
  extern "C" __global__ void __launch_bounds__(128, BLOCKS)                                        \
      NAME(u16* qkv, const float* cos, const float* sin, const u16* query_norm,                    \
           const u16* key_norm, unsigned char* keys, unsigned char* values, u32* params,           \
           const long long* slots, const float* mean, const float* channel_scale, int rows,        \
           int row_stride, int query_heads, int kv_heads, int rotary_dim, int key_bits,            \
           int value_bits, int rotated, int heads_a_group, float eps, int unit_offset) {           \
    const Heads heads{query_heads, kv_heads, heads_a_group};                                       \
    const Place place(heads);                                                                      \
    let_successor_start();                                                                         \
    if (place.row >= rows) return;                                                                 \
    const long long angles = static_cast<long long>(place.row) * rotary_dim;                       \
    const TURN<HEAD_DIM> turn(cos + angles, sin + angles, rotary_dim,                              \
                              threadIdx.x % Layout::kLanes);                                       \
    work_on(qkv + static_cast<long long>(place.row) * row_stride, place.unit, heads, turn,         \
            HeadNorm{query_norm, eps, unit_offset != 0}, HeadNorm{key_norm, eps, unit_offset != 0}, \
            Frame{mean, channel_scale, rotated != 0}, Store{keys, params, key_bits, kv_heads, 0},  \
            Store{values, params, value_bits, kv_heads, kv_heads}, slots[place.row]);              \
  }

// Where all of a head turns, and where any part of it does.
#if (HEAD_DIM & (HEAD_DIM - 1)) == 0
ROTARY_APPEND(rotary_append_whole, WholeTurn, 6)
#endif
ROTARY_APPEND(rotary_append_part, PartTurn, 4)
