// A vocabulary of vectors for templates that several instruction sets share, in AVX2: 8 lanes, 16 registers; bfloat16
// becomes float32 as soon as it is read.
//
// Floats are lanes of float32, Halves as many bfloat16, Units lanes of 32 bits of whatever kind.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace px {
namespace {

using Floats = __m256;
using Halves = __m128i;
using Units = __m256i;

constexpr int kLanes = 8;
constexpr int kSums = 12;        // registers of sums beside which there is room for their factors
constexpr int kTileColumns = 2;  // registers in a row of a tile of values

inline __m256i first_lanes(int count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

inline Floats splat(float x) { return _mm256_set1_ps(x); }
inline Floats load(const float* from) { return _mm256_loadu_ps(from); }
inline void store(float* to, Floats x) { _mm256_storeu_ps(to, x); }
inline Floats fused(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }  // a * b + c, rounded once
inline Floats larger(Floats a, Floats b) { return _mm256_max_ps(a, b); }
inline Floats smaller(Floats a, Floats b) { return _mm256_min_ps(a, b); }

inline float sum_of(Floats x) {
  __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_add_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_add_ss(y, _mm_shuffle_ps(y, y, 1)));
}

inline float largest_of(Floats x) {
  __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_max_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_max_ss(y, _mm_shuffle_ps(y, y, 1)));
}

inline Floats nearest_whole(Floats x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

// x - floor(x); 0 where that is below the least exponent
inline Floats above_whole(Floats x) {
  x = larger(splat(-127.0f), x);  // in this order a NaN stays one
  return x - _mm256_floor_ps(x);
}

// p * 2^floor(n), for p of about 1; 0 below the least exponent and infinity above the largest.
inline Floats times_power(Floats p, Floats n) {
  n = smaller(splat(128.0f), larger(splat(-127.0f), n));
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(_mm256_floor_ps(n)), _mm256_set1_epi32(127));
  return p * _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
}

// The lanes from `count` on are replaced.
inline Floats only_first(int count, Floats x, Floats otherwise) {
  return _mm256_blendv_ps(otherwise, x, _mm256_castsi256_ps(first_lanes(count)));
}

inline Units splat_unit(const void* unit) {
  int bits;
  std::memcpy(&bits, unit, 4);
  return _mm256_set1_epi32(bits);
}
inline Units load_units(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
inline Units load_units(const void* from, int count) {
  if (count >= kLanes) return load_units(from);
  return _mm256_maskload_epi32(static_cast<const int*>(from), first_lanes(count));
}
inline void store_units(void* to, Units x) { _mm256_storeu_si256(static_cast<__m256i*>(to), x); }
inline void stream_units(void* to, Units x) { _mm256_stream_si256(static_cast<__m256i*>(to), x); }
inline Floats floats_of(Units x) { return _mm256_castsi256_ps(x); }
inline Units units_of(Floats x) { return _mm256_castps_si256(x); }

// The lower and the upper one of two bfloat16.
inline Floats lower_half(Units x) { return floats_of(_mm256_slli_epi32(x, 16)); }
inline Floats upper_half(Units x) {
  return floats_of(_mm256_and_si256(x, _mm256_set1_epi32(static_cast<int>(0xffff0000))));
}

// Sums of products of two bfloat16 in a unit: the lower ones' product first and then the upper ones'.
inline Floats add_pairs(Floats sum, Units a, Units b) {
  return fused(upper_half(a), upper_half(b), fused(lower_half(a), lower_half(b), sum));
}

inline Halves load_halves(const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); }
inline Halves load_halves(const void* from, int count) {
  alignas(16) uint16_t numbers[kLanes] = {};
  if (count >= kLanes) return load_halves(from);
  if (count > 0) std::memcpy(numbers, from, 2 * static_cast<size_t>(count));
  return load_halves(numbers);
}
inline void store_halves(void* to, Halves x) { _mm_storeu_si128(static_cast<__m128i*>(to), x); }
inline void store_halves(void* to, Halves x, int count) {
  alignas(16) uint16_t numbers[kLanes];
  if (count >= kLanes) return store_halves(to, x);
  store_halves(numbers, x);
  if (count > 0) std::memcpy(to, numbers, 2 * static_cast<size_t>(count));
}

inline Floats wide(Halves x) { return floats_of(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16)); }

// To the nearest bfloat16, ties to even, in the lower halves of the lanes; a NaN stays one.
inline Units rounded_half(Floats x) {
  const __m256i bits = units_of(x), upper = _mm256_srli_epi32(bits, 16);
  const __m256i half = _mm256_add_epi32(_mm256_set1_epi32(0x7fff), _mm256_and_si256(upper, _mm256_set1_epi32(1)));
  const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, half), 16);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(rounded, _mm256_or_si256(upper, _mm256_set1_epi32(0x40)), nan);
}

inline Halves narrow(Floats x) {
  const __m256i y = rounded_half(x);
  return _mm_packus_epi32(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
}

// The lanes of both in turn, to `first` and `second`.
inline void interleave(Floats even, Floats odd, Floats* first, Floats* second) {
  const __m256 low = _mm256_unpacklo_ps(even, odd), high = _mm256_unpackhi_ps(even, odd);
  *first = _mm256_permute2f128_ps(low, high, 0x20);
  *second = _mm256_permute2f128_ps(low, high, 0x31);
}

// Eight registers whose lanes change places with them: lane i of x[j] with lane j of x[i].
inline void turn(Units (&x)[kLanes]) {
  __m256i y[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    y[i] = _mm256_unpacklo_epi32(x[i], x[i + 1]);
    y[i + 1] = _mm256_unpackhi_epi32(x[i], x[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4)
#pragma GCC unroll 2
    for (int j = 0; j < 2; j++) {
      x[i + 2 * j] = _mm256_unpacklo_epi64(y[i + j], y[i + j + 2]);
      x[i + 2 * j + 1] = _mm256_unpackhi_epi64(y[i + j], y[i + j + 2]);
    }
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) {
    y[j] = _mm256_permute2x128_si256(x[j], x[4 + j], 0x20);
    y[4 + j] = _mm256_permute2x128_si256(x[j], x[4 + j], 0x31);
  }
#pragma GCC unroll 8
  for (int j = 0; j < 8; j++) x[j] = y[j];
}

// Lane i of both, as two bfloat16 side by side.
inline Units pair_up(Floats even, Floats odd) {
  return _mm256_or_si256(rounded_half(even), _mm256_slli_epi32(rounded_half(odd), 16));
}

// Four columns of 8 numbers, as rows of bfloat16 that begin `stride` apart.
inline void store_turned(const Floats (&columns)[kSums / 3], uint16_t* out, int stride) {
  const __m256i a = pair_up(columns[0], columns[1]), b = pair_up(columns[2], columns[3]);
  const __m256i low = _mm256_unpacklo_epi32(a, b), high = _mm256_unpackhi_epi32(a, b);
  // half h of `low`: the four columns of rows 4 h and 4 h + 1; of `high`: of the two rows after these
  const __m128i rows[4] = {_mm256_castsi256_si128(low), _mm256_castsi256_si128(high), _mm256_extracti128_si256(low, 1),
                           _mm256_extracti128_si256(high, 1)};
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    _mm_storel_epi64(reinterpret_cast<__m128i*>(out + 2 * i * stride), rows[i]);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(out + (2 * i + 1) * stride), _mm_unpackhi_epi64(rows[i], rows[i]));
  }
}

}  // namespace
}  // namespace px

#include "vectors_math.h"
