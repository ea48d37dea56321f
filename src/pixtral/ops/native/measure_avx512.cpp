// Reading, 8-bit and float32 products with AVX-512.
#ifdef PX_X86
#include <immintrin.h>

#include "measure.h"

namespace px {

namespace {

constexpr int kChains = 16;  // enough independent sums to hide the latency of an instruction

int64_t total(const __m512i* sums, int count) {
  int64_t words[8], all = 0;
  for (int i = 0; i < count; i++) {
    _mm512_storeu_si512(words, sums[i]);
    for (const int64_t word : words) all += word;
  }
  return all;
}

}  // namespace

uint64_t read_avx512(const uint8_t* from, int64_t bytes) {
  __m512i sums[4];
  for (auto& sum : sums) sum = _mm512_setzero_si512();
  int64_t i = 0;
  for (; i + 256 <= bytes; i += 256) {
    for (int j = 0; j < 4; j++) sums[j] = _mm512_add_epi64(sums[j], _mm512_loadu_si512(from + i + 64 * j));
  }
  return read_portable(from + i, bytes - i) + static_cast<uint64_t>(total(sums, 4));
}

int64_t int8_avx512(int64_t rounds, int64_t* out) {
  __m512i sums[kChains];
  for (auto& sum : sums) sum = _mm512_setzero_si512();
  const __m512i right = _mm512_set1_epi8(static_cast<char>(rounds & 3));
  __m512i left = _mm512_set1_epi8(1);
  for (int64_t round = 0; round < rounds; round++) {
    for (auto& sum : sums) sum = _mm512_dpbusd_epi32(sum, left, right);
    asm volatile("" : "+v"(left));  // the products must not be moved out of the loop
  }
  *out = total(sums, kChains);
  return rounds * kChains * 64 * 2;
}

// What products of bfloat16 become where the CPU has no instruction for them.
int64_t f32_avx512(int64_t rounds, int64_t* out) {
  __m512 sums[kChains];
  for (auto& sum : sums) sum = _mm512_setzero_ps();
  const __m512 right = _mm512_setzero_ps();
  __m512 left = _mm512_set1_ps(1.0f);
  for (int64_t round = 0; round < rounds; round++) {
    for (auto& sum : sums) sum = _mm512_fmadd_ps(left, right, sum);
    asm volatile("" : "+v"(left));
  }
  float all = 0;
  for (const auto& sum : sums) all += _mm512_reduce_add_ps(sum);
  *out = static_cast<int64_t>(all);
  return rounds * kChains * 16 * 2;
}

}  // namespace px
#endif
