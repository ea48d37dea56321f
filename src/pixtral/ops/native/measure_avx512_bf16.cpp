// Products of bfloat16 with AVX-512 BF16.
#ifdef PX_X86
#include "measure_avx512.h"

namespace px {

int64_t bf16_avx512(int64_t rounds, int64_t* out) {
  const __m512i left = _mm512_set1_epi16(0x3f80), right = _mm512_setzero_si512();
  return chains(rounds, out, 32, [=](__m512i sum) {
    return _mm512_castps_si512(_mm512_dpbf16_ps(_mm512_castsi512_ps(sum), (__m512bh)left, (__m512bh)right));
  });
}

}  // namespace px
#endif
