// What AVX2 has of its own for the caches of attention: bytes, which become pairs of 16-bit numbers as they are read.
#pragma once

#include "vectors_avx2.h"

#include "attend_stored.h"

namespace px {
namespace {

using StoredBF16 = WideBF16;

struct DotI16 {  // two products of 16-bit numbers in a unit
  using Sum = __m256i;
  static __m256i zero() { return _mm256_setzero_si256(); }
  static __m256i get(const void* from) { return load_units(from); }
  static void put(void* to, __m256i sum) { store_units(to, sum); }
  // In assembler: GCC else takes all products before it adds one, and registers lack.
  static __m256i add(__m256i sum, __m256i a, __m256i b) {
    asm("vpaddd %1, %0, %0" : "+x"(sum) : "x"(_mm256_madd_epi16(a, b)));
    return sum;
  }
};

// Queries and weights as 16-bit numbers, keys and values as bytes: sums of products are exact.
struct StoredI8 {
  static constexpr int kPerUnit = 2, kBytes = 1, kParts = 1, kUnitsOfWord = 2;
  static constexpr bool kScaled = true;
  static constexpr float kMost = 32767.0f;
  using ScoreDot = DotI16;
  using ValueDot = DotI16;
  static_assert(int64_t{std::max(kMaxDim, kChunk)} * int64_t{INT16_MAX} * 127 < INT32_MAX);

  // Of the four channels in a word the even ones are a pair, and the odd ones.
  static void read_query(const AttendCall& call, int64_t at, uint32_t* to, int, Query& q) {
    float x[kMaxDim];
    read_row(call.type, call.q, at, call.dim, x);
    if (call.rotate) hadamard(x, call.dim);
    const float largest = largest_of(x, call.dim), factor = factor_of(largest, kMost);
    int16_t* pairs = reinterpret_cast<int16_t*>(to);
    for (int d = 0; d < call.dim; d++)
      pairs[d / 4 * 4 + d % 2 * 2 + d % 4 / 2] = static_cast<int16_t>(level_of(x[d], factor));
    q.factor = factor_of_scores(call, largest, kMost);
  }

  static Units key(Units x, int part) { return _mm256_srai_epi16(part ? x : _mm256_slli_epi16(x, 8), 8); }

  // Leaves channels 0-3 and 8-11 of each 16 in one register, 4-7 and 12-15 in the next.
  static void unpack(const char* const* rows, int64_t channel, int, Units (&x)[kTileColumns]) {
    const __m256i even = wide_bytes(rows[0] + channel), odd = wide_bytes(rows[1] + channel);
    x[0] = _mm256_unpacklo_epi16(even, odd);
    x[1] = _mm256_unpackhi_epi16(even, odd);
  }

  static __m256i wide_bytes(const char* from) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }

  static Floats score(const Query& q, const Scales& scales, int j) {
    return _mm256_cvtepi32_ps(load_units(q.scores + j)) * load(scales.keys + j);
  }

  // Of each value's scale, none negative, the largest up to it.
  static void read_scales(Scales& scales) {
    __m256i before = _mm256_setzero_si256();  // floats that are not negative are ordered as integers are
    for (int i = 0; i < kChunk; i += kLanes) {
      __m256i y = load_units(scales.values + i);
      y = larger_of(y, _mm256_setr_epi32(0, 0, 1, 2, 3, 4, 5, 6));
      y = larger_of(y, _mm256_setr_epi32(0, 0, 0, 1, 2, 3, 4, 5));
      y = larger_of(y, _mm256_setr_epi32(0, 0, 0, 0, 0, 1, 2, 3));
      y = _mm256_max_epi32(y, before);
      store_units(scales.largest + i, y);
      before = _mm256_permutevar8x32_epi32(y, _mm256_set1_epi32(kLanes - 1));
    }
  }

  static __m256i larger_of(__m256i x, __m256i lanes) {
    return _mm256_max_epi32(x, _mm256_permutevar8x32_epi32(x, lanes));
  }

  static void set_unit(Query& q, const Scales& scales, int visible) { choose_unit(q, scales, visible, kMost); }

  static void put_weights(const Query& q, const Scales& scales, int j, Floats p) {
    // keys that the query does not see may have scales that the unit is not made for
    const Floats factor = smaller(splat(kMost), load(scales.values + j) * splat(q.per_unit));
    const __m256i x = _mm256_cvtps_epi32(p * factor);
    const __m128i both = _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(reinterpret_cast<int16_t*>(q.weights) + j), both);
  }

  static void finish(const Query& q, int64_t, int dim, float* to) {
    for (int d = 0; d < dim; d += kColumns) {
      const Floats low = _mm256_cvtepi32_ps(load_units(q.sums + d)) * splat(q.unit);
      const Floats high = _mm256_cvtepi32_ps(load_units(q.sums + d + kLanes)) * splat(q.unit);
      store(to + d, _mm256_permute2f128_ps(low, high, 0x20));
      store(to + d + kLanes, _mm256_permute2f128_ps(low, high, 0x31));
    }
  }
};

}  // namespace
}  // namespace px
