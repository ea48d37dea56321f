// 8-bit products with AVX2: pairs of unsigned times signed bytes to 16 bits, pairs of those to 32. And those of float32.
#ifdef PX_X86
#include <immintrin.h>

#include "measure.h"

namespace px {

int64_t int8_avx2(int64_t rounds, int64_t* out) {
  constexpr int kChains = 8;
  __m256i sums[kChains];
  for (auto& sum : sums) sum = _mm256_setzero_si256();
  const __m256i ones = _mm256_set1_epi16(1);
  const __m256i right = _mm256_set1_epi8(static_cast<char>(rounds & 3));
  __m256i left = _mm256_set1_epi8(1);
  for (int64_t round = 0; round < rounds; round++) {
    for (auto& sum : sums) {
      asm volatile("" : "+x"(left));  // every sum needs a product of its own
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(left, right), ones));
    }
  }
  for (int i = 1; i < kChains; i++) sums[0] = _mm256_add_epi32(sums[0], sums[i]);
  *out = _mm256_extract_epi64(sums[0], 0);
  return rounds * kChains * 32 * 2;
}

// What products of bfloat16 become.
int64_t f32_avx2(int64_t rounds, int64_t* out) {
  constexpr int kChains = 12;
  __m256 sums[kChains];
#pragma GCC unroll 12
  for (int i = 0; i < kChains; i++) {
    sums[i] = _mm256_setzero_ps();
    asm volatile("" : "+x"(sums[i]));  // of which the compiler knows nothing: every sum needs products of its own
  }
  const __m256 left = _mm256_set1_ps(1.0f);
  for (int64_t round = 0; round < rounds; round++)
#pragma GCC unroll 12
    for (int i = 0; i < kChains; i++) sums[i] = _mm256_fmadd_ps(left, _mm256_setzero_ps(), sums[i]);
#pragma GCC unroll 12
  for (int i = 1; i < kChains; i++) sums[0] = _mm256_add_ps(sums[0], sums[i]);
  *out = static_cast<int64_t>(_mm256_cvtss_f32(sums[0]));
  return rounds * kChains * 8 * 2;
}

}  // namespace px
#endif
