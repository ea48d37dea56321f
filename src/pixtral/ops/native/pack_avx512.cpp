// The search for scales with AVX-512.
#ifdef PX_X86
#include <immintrin.h>

#include <initializer_list>

#include "pack_search.h"

namespace px {

namespace {

// 16 floats.
struct F {
  __m512 v;

  explicit F(float all) : v(_mm512_set1_ps(all)) {}
  F(__m512 from) : v(from) {}  // NOLINT: implicit on purpose
  static F load(const float* from) { return _mm512_loadu_ps(from); }
  void store(float* to) const { _mm512_storeu_ps(to, v); }
  friend F operator*(F a, F b) { return _mm512_mul_ps(a.v, b.v); }
  friend F operator+(F a, F b) { return _mm512_add_ps(a.v, b.v); }
  friend F operator/(F a, F b) { return _mm512_div_ps(a.v, b.v); }

  float total() const {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }

  template <int Bits>
  __m512i nearest() const {
    if constexpr (Bits == 4) {
      // by halves: the code that is found so far says which border comes next
      const __m512 borders = _mm512_loadu_ps(kBorders4);
      __m512i code = _mm512_maskz_set1_epi32(_mm512_cmp_ps_mask(v, _mm512_set1_ps(kBorders4[7]), _CMP_GT_OQ), 8);
      for (const int step : {4, 2, 1}) {
        const __m512i next = _mm512_add_epi32(code, _mm512_set1_epi32(step - 1));
        const __mmask16 above = _mm512_cmp_ps_mask(v, _mm512_permutexvar_ps(next, borders), _CMP_GT_OQ);
        code = _mm512_mask_add_epi32(code, above, code, _mm512_set1_epi32(step));
      }
      return code;
    } else {
      const __m512i most = _mm512_set1_epi32(127), least = _mm512_set1_epi32(-127);
      const __m512i level = _mm512_max_epi32(_mm512_min_epi32(_mm512_cvtps_epi32(v), most), least);
      return _mm512_add_epi32(level, _mm512_set1_epi32(128));
    }
  }

  template <int Bits>
  static F levels(__m512i codes) {
    if constexpr (Bits == 4) {
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(kLevels4));
      return _mm512_permutexvar_ps(codes, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)));
    } else {
      return _mm512_cvtepi32_ps(_mm512_sub_epi32(codes, _mm512_set1_epi32(128)));
    }
  }

  static void store(__m512i codes, uint8_t* to) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(codes));
  }
};

}  // namespace

const PackKernels pack_avx512 = {fit_group<F>, snap_group<F>};

}  // namespace px
#endif
