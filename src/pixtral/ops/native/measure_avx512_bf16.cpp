// Products of bfloat16 with AVX-512 BF16.
#ifdef PX_X86
#include <immintrin.h>

#include "measure.h"

namespace px {

static constexpr int kChains = 16;  // enough independent sums to hide the latency of an instruction

int64_t bf16_avx512(int64_t rounds, int64_t* out) {
  __m512 sums[kChains];
  for (auto& sum : sums) sum = _mm512_setzero_ps();
  const __m512bh right = (__m512bh)_mm512_set1_epi16(0);
  __m512i left = _mm512_set1_epi16(0x3f80);
  for (int64_t round = 0; round < rounds; round++) {
    for (auto& sum : sums) sum = _mm512_dpbf16_ps(sum, (__m512bh)left, right);
    asm volatile("" : "+v"(left));
  }
  float all = 0;
  for (const auto& sum : sums) all += _mm512_reduce_add_ps(sum);
  *out = static_cast<int64_t>(all);
  return rounds * kChains * 32 * 2;
}

}  // namespace px
#endif
