// Reading, 8-bit and float32 products with AVX-512.
#ifdef PX_X86
#include "measure_avx512.h"

namespace px {

uint64_t read_avx512(const uint8_t* from, int64_t bytes) {
  __m512i sums[4];
  for (auto& sum : sums) sum = _mm512_setzero_si512();
  int64_t i = 0;
  for (; i + 256 <= bytes; i += 256) {
    for (int j = 0; j < 4; j++) sums[j] = _mm512_add_epi64(sums[j], _mm512_loadu_si512(from + i + 64 * j));
  }
  uint64_t all = read_portable(from + i, bytes - i);
  for (const auto& sum : sums) all += static_cast<uint64_t>(_mm512_reduce_add_epi64(sum));
  return all;
}

int64_t int8_avx512(int64_t rounds, int64_t* out) {
  const __m512i left = _mm512_set1_epi8(1), right = _mm512_set1_epi8(static_cast<char>(rounds & 3));
  return chains(rounds, out, 64, [=](__m512i sum) { return _mm512_dpbusd_epi32(sum, left, right); });
}

// What products of bfloat16 become where the CPU has no instruction for them.
int64_t f32_avx512(int64_t rounds, int64_t* out) {
  const __m512i left = _mm512_castps_si512(_mm512_set1_ps(1.0f));
  return chains(rounds, out, 16, [=](__m512i sum) {
    return _mm512_castps_si512(
        _mm512_fmadd_ps(_mm512_castsi512_ps(left), _mm512_setzero_ps(), _mm512_castsi512_ps(sum)));
  });
}

}  // namespace px
#endif
