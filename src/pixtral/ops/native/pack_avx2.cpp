// The search for scales with AVX2.
#ifdef PX_X86
#include <immintrin.h>

#include "pack_search.h"

namespace px {

namespace {

// The borders that halving looks at when it has found c / 8, c / 4, c / 2 so far, in the order of that.
alignas(32) constexpr float kSecond[8] = {kBorders4[3], kBorders4[11]};
alignas(32) constexpr float kThird[8] = {kBorders4[1], kBorders4[5], kBorders4[9], kBorders4[13]};
alignas(32) constexpr float kFourth[8] = {kBorders4[0], kBorders4[2],  kBorders4[4],  kBorders4[6],
                                          kBorders4[8], kBorders4[10], kBorders4[12], kBorders4[14]};

struct Codes {
  __m256i low, high;
};

// 16 floats.
struct F {
  __m256 low, high;

  explicit F(float all) : low(_mm256_set1_ps(all)), high(low) {}
  F(__m256 first, __m256 second) : low(first), high(second) {}
  static F load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
  void store(float* to) const {
    _mm256_storeu_ps(to, low);
    _mm256_storeu_ps(to + 8, high);
  }
  friend F operator*(F a, F b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
  friend F operator+(F a, F b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
  friend F operator/(F a, F b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }

  float total() const {
    const __m256 eight = _mm256_add_ps(low, high);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }

  // 2c + 1 where v is above the border, else 2c.
  static __m256i halve(__m256 v, __m256i c, __m256 borders) {
    const __m256 above = _mm256_cmp_ps(v, _mm256_permutevar8x32_ps(borders, c), _CMP_GT_OQ);
    return _mm256_sub_epi32(_mm256_add_epi32(c, c), _mm256_castps_si256(above));
  }

  template <int Bits>
  static __m256i nearest(__m256 v) {
    if constexpr (Bits == 4) {
      __m256i c = halve(v, _mm256_setzero_si256(), _mm256_set1_ps(kBorders4[7]));
      c = halve(v, c, _mm256_load_ps(kSecond));
      c = halve(v, c, _mm256_load_ps(kThird));
      return halve(v, c, _mm256_load_ps(kFourth));
    } else {
      const __m256i most = _mm256_set1_epi32(127), least = _mm256_set1_epi32(-127);
      const __m256i level = _mm256_max_epi32(_mm256_min_epi32(_mm256_cvtps_epi32(v), most), least);
      return _mm256_add_epi32(level, _mm256_set1_epi32(128));
    }
  }

  template <int Bits>
  Codes nearest() const {
    return {nearest<Bits>(low), nearest<Bits>(high)};
  }

  template <int Bits>
  static __m256 levels(__m256i codes) {
    if constexpr (Bits == 4) {
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(kLevels4));
      const __m256i first = _mm256_cvtepi8_epi32(bytes), second = _mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8));
      const __m256i below = _mm256_permutevar8x32_epi32(first, codes);  // looks at the low three bits of a code
      const __m256i above = _mm256_permutevar8x32_epi32(second, codes);
      const __m256i upper = _mm256_cmpgt_epi32(codes, _mm256_set1_epi32(7));
      return _mm256_cvtepi32_ps(_mm256_blendv_epi8(below, above, upper));
    } else {
      return _mm256_cvtepi32_ps(_mm256_sub_epi32(codes, _mm256_set1_epi32(128)));
    }
  }

  template <int Bits>
  static F levels(Codes codes) {
    return {levels<Bits>(codes.low), levels<Bits>(codes.high)};
  }

  static void store(Codes codes, uint8_t* to) {
    alignas(32) int32_t whole[16];
    _mm256_store_si256(reinterpret_cast<__m256i*>(whole), codes.low);
    _mm256_store_si256(reinterpret_cast<__m256i*>(whole + 8), codes.high);
    for (int i = 0; i < 16; i++) to[i] = static_cast<uint8_t>(whole[i]);
  }
};

}  // namespace

const PackKernels pack_avx2 = {fit_group<F>, snap_group<F>};

}  // namespace px
#endif
