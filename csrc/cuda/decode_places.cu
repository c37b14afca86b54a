// Where the one new token of each row goes, and how many keys it sees, in steps of decodes.
//
// page_table holds the pages of each row's sequence in order, its rows row_stride numbers apart;
// positions [rows] the place of its token. slots[row] = page * 64 + offset in it, lengths[row] =
// position + 1; of a row whose position is negative -1 and 0.
//
// No successor starts before this kernel has ended: attention reads the lengths of a step ahead of its
// predecessors' end, however many kernels overlap between the two (paged_decode.cu).
// Launch: grid (ceil(rows / threads)), block (threads), no dynamic shared memory.
#include "bf16.cuh"

using namespace awqkit;

constexpr int kPageTokens = 64;

extern "C" __global__ void decode_places(const int* page_table, const long long* positions,
                                         long long* slots, int* lengths, int rows, int row_stride) {
  const int row = blockIdx.x * blockDim.x + threadIdx.x;
  wait_for_predecessor();
  if (row >= rows) return;
  const long long position = positions[row];
  if (position < 0) {
    slots[row] = -1;
    lengths[row] = 0;
  } else {
    const long long page =
        page_table[static_cast<long long>(row) * row_stride + position / kPageTokens];
    slots[row] = page * kPageTokens + position % kPageTokens;
    lengths[row] = static_cast<int>(position) + 1;
  }
  __threadfence();
}
