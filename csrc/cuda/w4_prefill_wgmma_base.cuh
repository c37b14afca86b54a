// What all wgmma have in common: how their registers are named, when they run, where tokens lie.
#pragma once

#include "w4_prefill_tile.cuh"

namespace w4_prefill {

// Operand names of register lists, as wgmma wants them.
#define W4_NAMES_HALF "%0,%1,%2,%3,%4,%5,%6,%7"
#define W4_NAMES_0 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define W4_NAMES_1 W4_NAMES_0 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define W4_NAMES_1_HALF W4_NAMES_0 ",%16,%17,%18,%19,%20,%21,%22,%23"
#define W4_NAMES_2 W4_NAMES_1 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define W4_NAMES_3 W4_NAMES_2 ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define W4_NAMES_4 W4_NAMES_3 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79"
#define W4_NAMES_5 W4_NAMES_4 ",%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define W4_NAMES_6 \
  W4_NAMES_5 ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111"
#define W4_NAMES_7 \
  W4_NAMES_6 ",%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"

__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

// Fixes the place where a fragment is complete: nothing that defines it may sink below.
__device__ __forceinline__ void pin_registers(u32 (&fragment)[4]) {
  asm volatile(""
               : "+r"(fragment[0]), "+r"(fragment[1]), "+r"(fragment[2]), "+r"(fragment[3])::"memory");
}

__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Descriptor of a K-major tile [tokens x 64 BF16] in the 128-byte swizzle, less its address: 8 rows
// lie 1024 bytes apart. The next 16 inputs lie 32 bytes further on, which is 2 in the descriptor's
// address.
constexpr u64 kTokenDescriptor = static_cast<u64>(1) << 62 | static_cast<u64>(1024 >> 4) << 32 |
                                 static_cast<u64>(1) << 16;

}  // namespace w4_prefill
