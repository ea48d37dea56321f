// Multiply-adds that the compiler can neither leave out nor slow down by moving registers to memory.
#pragma once

#include <immintrin.h>

#include "measure.h"

namespace px {
namespace {

// Zeros of which the compiler knows nothing, so that every sum needs products of its own.
inline __m512i unknown_zeros() {
  __m512i x = _mm512_setzero_si512();
  asm volatile("" : "+v"(x));
  return x;
}

// `rounds` rounds of `add` on each of 16 registers, enough to hide an instruction's latency; returns the operations, two
// for each of `lanes` multiply-adds.
template <class Add>
int64_t chains(int64_t rounds, int64_t* out, int lanes, Add add) {
  constexpr int kChains = 16;
  __m512i sums[kChains];
#pragma GCC unroll 16
  for (int i = 0; i < kChains; i++) sums[i] = unknown_zeros();
  for (int64_t round = 0; round < rounds; round++)
#pragma GCC unroll 16
    for (int i = 0; i < kChains; i++) sums[i] = add(sums[i]);
  int64_t all = 0;
#pragma GCC unroll 16
  for (int i = 0; i < kChains; i++) all += _mm512_reduce_add_epi32(sums[i]);
  *out = all;
  return rounds * kChains * lanes * 2;
}

}  // namespace
}  // namespace px
