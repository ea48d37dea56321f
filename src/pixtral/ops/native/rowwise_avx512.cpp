// Norms and rotary embeddings, compiled for AVX-512; the norm by hand, where the compiler did not find the vectors.
#ifdef PX_X86
#include <immintrin.h>

#include "rowwise.h"
#include "vectors_avx512.h"

namespace px {

namespace {

__m512 wide(const uint16_t* from, __mmask16 mask) { return wide(_mm256_maskz_loadu_epi16(mask, from)); }

__m512 rounded(__m512 x) { return wide(narrow(x)); }

__mmask16 lanes(int64_t left) { return static_cast<__mmask16>(left >= 16 ? 0xffff : (1u << left) - 1); }

void norm_row_avx512(const uint16_t* x, const uint16_t* weight, uint16_t* out, int64_t width, float eps) {
  __m512 sums[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
  for (int64_t i = 0; i < width; i += 64)
    for (int j = 0; j < 4; j++) {
      const int64_t left = width - i - 16 * j;
      const __m512 v = wide(x + i + 16 * j, left > 0 ? lanes(left) : 0);
      sums[j] = _mm512_fmadd_ps(v, v, sums[j]);
    }
  const float sum = _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3])));
  const __m512 scale = _mm512_set1_ps(1.0f / std::sqrt(sum / static_cast<float>(width) + eps));
  for (int64_t i = 0; i < width; i += 16) {
    const __mmask16 mask = lanes(width - i);
    const __m512 y = _mm512_mul_ps(rounded(_mm512_mul_ps(wide(x + i, mask), scale)), wide(weight + i, mask));
    _mm256_mask_storeu_epi16(out + i, mask, narrow(y));
  }
}

}  // namespace

const RowwiseKernels rowwise_avx512 = {norm_row_avx512, rotate_row, add_run};

}  // namespace px
#endif
