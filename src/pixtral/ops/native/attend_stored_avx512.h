// What AVX-512 has of its own for the caches of attention: products of bytes, and of pairs of bfloat16.
#pragma once

#include "vectors_avx512.h"

#include "attend_stored.h"

namespace px {
namespace {

#ifdef __AVX512BF16__

struct StoredBF16 : Singles {
  static constexpr int kPerUnit = 2, kBytes = 2;
  using ScoreDot = DotBF16;
  using ValueDot = DotBF16;

  static Units key(Units x, int) { return x; }

  static void read_query(const AttendCall& call, int64_t at, uint32_t* to, int, Query& q) {
    std::memcpy(to, static_cast<const uint16_t*>(call.q) + at, call.dim * 2);
    q.factor = call.scale * kLog2E;
  }

  static void unpack(const char* const* rows, int64_t channel, int left, __m512i (&x)[4]) {
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
      const int count = left / 2 - 16 * i;
      const __m512i even = load_units(rows[0] + 2 * channel + 64 * i, count);
      const __m512i odd = load_units(rows[1] + 2 * channel + 64 * i, count);
      x[2 * i] = _mm512_unpacklo_epi16(even, odd);
      x[2 * i + 1] = _mm512_unpackhi_epi16(even, odd);
    }
  }

  static void put_weights(const Query& q, const Scales&, int j, __m512 p) {
    store_halves(q.weights + j / 2, narrow(p));
  }

  // Unpacking left channels 8 i + 0-3 of each 32 in one register and 8 i + 4-7 in the next.
  static void finish(const Query& q, int64_t, int dim, float* to) {
    for (int d = 0; d < dim; d += 32) {
      const __m512 low = _mm512_loadu_ps(q.sums + d), high = _mm512_loadu_ps(q.sums + d + 16);
      const __m512i order = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
      const __m512i after = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
      _mm512_storeu_ps(to + d, _mm512_permutex2var_ps(low, order, high));
      if (dim - d > 16) _mm512_storeu_ps(to + d + 16, _mm512_permutex2var_ps(low, after, high));
    }
  }
};

#else

using StoredBF16 = WideBF16;

#endif

struct DotI32 {
  using Sum = __m512i;
  static __m512i zero() { return _mm512_setzero_si512(); }
  static __m512i get(const void* from) { return _mm512_loadu_si512(from); }
  static void put(void* to, __m512i sum) { _mm512_storeu_si512(to, sum); }
};

struct DotSignedA : DotI32 {  // signed bytes of A, unsigned bytes of B
  static __m512i add(__m512i sum, __m512i a, __m512i b) { return _mm512_dpbusd_epi32(sum, b, a); }
};

struct DotUnsignedA : DotI32 {
  static __m512i add(__m512i sum, __m512i a, __m512i b) { return _mm512_dpbusd_epi32(sum, a, b); }
};

// Queries and weights as 16-bit numbers in two parts of a byte, keys and values as bytes: sums of products are exact.
struct StoredI8 {
  static constexpr int kPerUnit = 4, kBytes = 1, kParts = 2, kUnitsOfWord = 1;
  static constexpr bool kScaled = true;
  using ScoreDot = DotSignedA;
  using ValueDot = DotUnsignedA;

  static void read_query(const AttendCall& call, int64_t at, uint32_t* to, int units, Query& q) {
    constexpr float kMost = 127.0f * 256.0f;  // the upper part stays within a byte
    float x[kMaxDim];
    read_row(call.type, call.q, at, call.dim, x);
    if (call.rotate) hadamard(x, call.dim);
    const float largest = largest_of(x, call.dim), factor = factor_of(largest, kMost);
    int8_t *upper = reinterpret_cast<int8_t*>(to), *lower = upper + 4 * units;
    int32_t total = 0;
    for (int d = 0; d < call.dim; d++) {
      const int32_t v = level_of(x[d], factor), high = (v + 128) >> 8;
      upper[d] = static_cast<int8_t>(high);
      lower[d] = static_cast<int8_t>(v - 256 * high);
      total += v;
    }
    q.offset = 128 * total;
    q.factor = factor_of_scores(call, largest, kMost);
  }

  static __m512i key(__m512i x, int) { return _mm512_xor_si512(x, _mm512_set1_epi8(-128)); }  // plus 128, unsigned

  static void unpack(const char* const* rows, int64_t channel, int left, __m512i (&x)[4]) {
    __m512i y[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) y[i] = load_units(rows[i] + channel, left / 4);
    const __m512i a = _mm512_unpacklo_epi8(y[0], y[1]), b = _mm512_unpackhi_epi8(y[0], y[1]);
    const __m512i c = _mm512_unpacklo_epi8(y[2], y[3]), d = _mm512_unpackhi_epi8(y[2], y[3]);
    x[0] = _mm512_unpacklo_epi16(a, c);
    x[1] = _mm512_unpackhi_epi16(a, c);
    x[2] = _mm512_unpacklo_epi16(b, d);
    x[3] = _mm512_unpackhi_epi16(b, d);
  }

  static __m512i whole(const uint32_t* upper, int64_t stride) {
    return _mm512_add_epi32(_mm512_slli_epi32(_mm512_loadu_si512(upper), 8), _mm512_loadu_si512(upper + stride));
  }

  static __m512 score(const Query& q, const Scales& scales, int j) {
    const __m512i x = _mm512_sub_epi32(whole(q.scores + j, kChunk), _mm512_set1_epi32(q.offset));
    return _mm512_mul_ps(_mm512_cvtepi32_ps(x), _mm512_loadu_ps(scales.keys + j));
  }

  // Of each value's scale, none negative, the largest up to it.
  static void read_scales(Scales& scales) {
    const __m512i none = _mm512_setzero_si512();  // floats that are not negative are ordered as integers are
    __m512i before = none;
    for (int i = 0; i < kChunk; i += 16) {
      __m512i y = _mm512_max_epi32(_mm512_loadu_si512(scales.values + i), before);
      y = _mm512_max_epi32(y, _mm512_alignr_epi32(y, none, 15));
      y = _mm512_max_epi32(y, _mm512_alignr_epi32(y, none, 14));
      y = _mm512_max_epi32(y, _mm512_alignr_epi32(y, none, 12));
      y = _mm512_max_epi32(y, _mm512_alignr_epi32(y, none, 8));
      _mm512_storeu_si512(scales.largest + i, y);
      before = _mm512_permutexvar_epi32(_mm512_set1_epi32(15), y);
    }
  }

  static void set_unit(Query& q, const Scales& scales, int visible) { choose_unit(q, scales, visible, 65535.0f); }

  static void put_weights(const Query& q, const Scales& scales, int j, __m512 p) {
    const __m512 factor = _mm512_mul_ps(_mm512_loadu_ps(scales.values + j), _mm512_set1_ps(q.per_unit));
    const __m512i x = _mm512_cvtps_epi32(_mm512_mul_ps(p, factor));
    uint8_t* to = reinterpret_cast<uint8_t*>(q.weights) + j;
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(_mm512_srli_epi32(x, 8)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + kChunk), _mm512_cvtepi32_epi8(x));
  }

  // Unpacking left four channels of each 16 in turn in each of the four registers.
  static void finish(const Query& q, int64_t channels, int dim, float* to) {
    for (int d = 0; d < dim; d += 64) {
      __m512 x[4];
      for (int i = 0; i < 4; i++)
        x[i] = _mm512_mul_ps(_mm512_cvtepi32_ps(whole(q.sums + d + 16 * i, channels)), _mm512_set1_ps(q.unit));
      const __m512 a = _mm512_shuffle_f32x4(x[0], x[1], 0x44), b = _mm512_shuffle_f32x4(x[0], x[1], 0xee);
      const __m512 c = _mm512_shuffle_f32x4(x[2], x[3], 0x44), e = _mm512_shuffle_f32x4(x[2], x[3], 0xee);
      _mm512_storeu_ps(to + d, _mm512_shuffle_f32x4(a, c, 0x88));
      if (dim - d > 16) _mm512_storeu_ps(to + d + 16, _mm512_shuffle_f32x4(a, c, 0xdd));
      if (dim - d > 32) _mm512_storeu_ps(to + d + 32, _mm512_shuffle_f32x4(b, e, 0x88));
      if (dim - d > 48) _mm512_storeu_ps(to + d + 48, _mm512_shuffle_f32x4(b, e, 0xdd));
    }
  }
};

}  // namespace
}  // namespace px
