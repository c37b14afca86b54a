// The likeliest token of each row, where every rank has looked at some of the vocabulary.
//
// own int64 [rows, 2]: what this rank found, counted from first_token, and 1 where all its logits are
// finite; values FP32 [rows]: the logits of these tokens. Both are null on a rank that looks at none.
// choice int64 [rows, 2]: the same of all ranks together, the same numbers on each; of equal logits
// the lowest token. Tokens lie below 2^31.
//
// meetings [max_rows] count those of each row (rank_packets.cuh), which has one place.
// Launch: grid (rows), block (32), no dynamic shared memory; one stream.
#include "likeliest_key.cuh"
#include "rank_packets.cuh"

using namespace awqkit;

extern "C" __global__ void __launch_bounds__(32)
    rank_choice(const __grid_constant__ Ranks ranks, u32* meetings, int max_rows,
                const long long* own, const float* values, int first_token, long long* choice) {
  const int row = blockIdx.x, lane = threadIdx.x;
  const u32 number = next_meeting(meetings[row]);
  const Meeting meeting(ranks, number, max_rows);
  // A rank that looks at nothing: below whatever others find, and finite.
  u32 value = 0, token = 0x7fffffffu, finite = 1;
  if (own != nullptr) {
    value = ordered(values[row]);
    token = u32(own[2 * row]) + first_token;
    finite = u32(own[2 * row + 1]);
  }
  if (lane == 0) meeting.send(row, value, token << 1 | finite);
  if (lane < ranks.num_ranks && lane != ranks.rank) {
    ulonglong2 packets = meeting.look(lane, row);
    meeting.wait_for(packets, lane, row);
    value = u32(packets.x);
    token = u32(packets.y) >> 1;
    finite = u32(packets.y) & 1;
  }
  const u64 key = max_of_warp(lane < ranks.num_ranks ? key_of(value, token) : 0ull);
  const bool all_finite = __all_sync(0xffffffffu, lane >= ranks.num_ranks || finite != 0);
  if (lane != 0) return;
  choice[2 * row] = token_of(key);
  choice[2 * row + 1] = all_finite;
  meetings[row] = number;
}
