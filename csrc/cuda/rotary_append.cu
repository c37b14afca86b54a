// What attention needs of new tokens, in one kernel: queries and keys normed, turned and laid
// in the key frame, keys and values stored in the pages.
//
// Row t of qkv holds query_heads queries, kv_heads keys and kv_heads values of HEAD_DIM BF16 numbers;
// rows lie row_stride numbers apart. Queries and keys are normed and turned in place
// (rotary_turn.cuh) and rounded to BF16; then they are laid in the frame in FP32 (kv_vector.cuh),
// queries again in place. Keys and values go to slots[t] = page * 64 + offset, and nowhere where that
// is negative: as codes of 8 or 4 bits (kv_codes.cuh), or as BF16 for 16, and then qkv too holds the
// key as it is stored.
//
//   keys, values   [pages, kv_heads, 64, HEAD_DIM * bits / 8] bytes
//   params         [pages, 2 * kv_heads, 64] pairs of FP16: scale, minimum; keys, then values
//   mean, channel_scale   FP32 [kv_heads, HEAD_DIM] or null
//
// A warp takes heads_a_warp heads of one row and keeps the angles meanwhile. It fetches them before
// the predecessor ends: what wrote cos and sin must have ended before that one began, as the angles of
// a step have, which torch computes before the first layer.
// Launch: grid (rows, ceil((query_heads + 2 * kv_heads) / (warps * heads_a_warp))), block
// (32 * warps), no dynamic shared memory. HEAD_DIM is a multiple of 32; row_stride is even; qkv and
// pages are 4-byte aligned.
#include "kv_codes.cuh"
#include "rotary_turn.cuh"

using namespace awqkit;

using Vector = HeadVector<HEAD_DIM>;

constexpr int kPageTokens = 64;
constexpr int kDenseBits = 16;

// Of one KV head where it is used; null: left out.
struct Frame {
  const float *mean, *channel_scale;
  bool rotated;

  __device__ Frame of_head(int kv) const {
    return {mean == nullptr ? nullptr : mean + kv * HEAD_DIM,
            channel_scale == nullptr ? nullptr : channel_scale + kv * HEAD_DIM, rotated};
  }
  __device__ bool moves_queries() const { return channel_scale != nullptr || rotated; }
  __device__ bool moves_keys() const { return mean != nullptr || moves_queries(); }
};

// The vectors of all heads of one kind, with their parameters.
struct Store {
  unsigned char* vectors;
  u32* params;
  int bits, kv_heads, first_params;

  __device__ unsigned char* vector(long long slot, int kv) const {
    return vectors + run(slot, kv_heads, kv) * (HEAD_DIM * bits / 8);
  }
  __device__ u32* pair(long long slot, int kv) const {
    return params + run(slot, 2 * kv_heads, first_params + kv);
  }
  // Of a token's vector, counted over pages, heads and tokens.
  __device__ static long long run(long long slot, int heads, int head) {
    return (slot / kPageTokens * heads + head) * kPageTokens + slot % kPageTokens;
  }
};

__device__ void copy_head(const u16* head, unsigned char* to, int lane) {
  const u32* from = reinterpret_cast<const u32*>(head);
  for (int i = lane; i < HEAD_DIM / 2; i += 32) reinterpret_cast<u32*>(to)[i] = from[i];
}

__device__ void store_codes(const Vector& vector, const Store& store, long long slot, int kv,
                            int lane) {
  const HeadCodes<HEAD_DIM> codes(vector, store.bits);
  codes.store(store.vector(slot, kv), store.bits, lane);
  if (lane == 0) *store.pair(slot, kv) = codes.params;
}

__device__ void store_value(const u16* head, const Store& store, long long slot, int kv, int lane) {
  if (store.bits == kDenseBits) {
    copy_head(head, store.vector(slot, kv), lane);
  } else {
    store_codes(Vector(head, lane), store, slot, kv, lane);
  }
}

__device__ void store_key(u16* head, const Frame& frame, const Store& store, long long slot, int kv,
                          int lane) {
  if (!frame.moves_keys()) {
    store_value(head, store, slot, kv, lane);
    return;
  }
  Vector vector(head, lane);
  vector.lay_key(frame.mean, frame.channel_scale, frame.rotated, lane);
  if (store.bits != kDenseBits) {
    store_codes(vector, store, slot, kv, lane);
    return;
  }
  vector.store(head, lane);
  __syncwarp();
  copy_head(head, store.vector(slot, kv), lane);
}

__device__ void lay_query(u16* head, const Frame& frame, int lane) {
  if (!frame.moves_queries()) return;
  Vector vector(head, lane);
  vector.lay_query(frame.channel_scale, frame.rotated, lane);
  vector.store(head, lane);
}

extern "C" __global__ void __launch_bounds__(128)
    rotary_append(u16* qkv, const float* cos, const float* sin, const u16* query_norm,
                  const u16* key_norm, unsigned char* keys, unsigned char* values, u32* params,
                  const long long* slots, const float* mean, const float* channel_scale,
                  int row_stride, int query_heads, int kv_heads, int rotary_dim, int key_bits,
                  int value_bits, int rotated, int heads_a_warp, float eps, int unit_offset) {
  const int lane = threadIdx.x % 32;
  const int warp = blockIdx.y * (blockDim.x / 32) + threadIdx.x / 32;
  const long long row = blockIdx.x;
  const int first_value = query_heads + kv_heads, heads = query_heads + 2 * kv_heads;
  const Frame frame{mean, channel_scale, rotated != 0};
  const Store key_store{keys, params, key_bits, kv_heads, 0};
  const Store value_store{values, params, value_bits, kv_heads, kv_heads};
  let_successor_start();
  const Angles angles(cos + row * rotary_dim, sin + row * rotary_dim, rotary_dim / 2, lane);
  wait_for_predecessor();

  const long long slot = slots[row];
  const int end = min(heads, (warp + 1) * heads_a_warp);
  for (int index = warp * heads_a_warp; index < end; ++index) {
    u16* head = qkv + row * row_stride + static_cast<long long>(index) * HEAD_DIM;
    if (index < first_value) {
      const HeadNorm norm{index < query_heads ? query_norm : key_norm, eps, unit_offset != 0};
      turn_head(head, angles, norm, HEAD_DIM, lane);
      __syncwarp();  // Lanes read on what others turned.
    }
    if (index < query_heads) {
      lay_query(head, frame.of_head(index / (query_heads / kv_heads)), lane);
    } else if (slot >= 0 && index < first_value) {
      const int kv = index - query_heads;
      store_key(head, frame.of_head(kv), key_store, slot, kv, lane);
    } else if (slot >= 0) {
      store_value(head, value_store, slot, index - first_value, lane);
    }
  }
}
