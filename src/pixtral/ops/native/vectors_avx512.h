// A vocabulary of vectors for templates that several instruction sets share, in AVX-512: 16 lanes, 32 registers. Where
// the CPU has no instruction for bfloat16, integers do the rounding.
//
// Floats are lanes of float32, Halves as many bfloat16, Units lanes of 32 bits of whatever kind.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace px {
namespace {

using Floats = __m512;
using Halves = __m256i;
using Units = __m512i;

constexpr int kLanes = 16;
constexpr int kSums = 24;        // registers of sums beside which there is room for their factors
constexpr int kTileColumns = 4;  // registers in a row of a tile of values

inline __mmask16 first_lanes(int count) {
  return static_cast<__mmask16>(count <= 0 ? 0 : count >= 16 ? 0xffff : (1u << count) - 1);
}

inline Floats splat(float x) { return _mm512_set1_ps(x); }
inline Floats load(const float* from) { return _mm512_loadu_ps(from); }
inline void store(float* to, Floats x) { _mm512_storeu_ps(to, x); }
inline Floats fused(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }  // a * b + c, rounded once
inline Floats larger(Floats a, Floats b) { return _mm512_max_ps(a, b); }
inline Floats smaller(Floats a, Floats b) { return _mm512_min_ps(a, b); }
inline float sum_of(Floats x) { return _mm512_reduce_add_ps(x); }
inline float largest_of(Floats x) { return _mm512_reduce_max_ps(x); }

inline Floats nearest_whole(Floats x) { return _mm512_roundscale_ps(x, 8); }
inline Floats above_whole(Floats x) { return _mm512_reduce_ps(x, 0x09); }                     // x - floor(x)
inline Floats times_power(Floats p, Floats n) { return _mm512_scalef_ps(p, n); }              // p * 2^floor(n)

// The lanes from `count` on are replaced.
inline Floats only_first(int count, Floats x, Floats otherwise) {
  return _mm512_mask_mov_ps(otherwise, first_lanes(count), x);
}

inline Units splat_unit(const void* unit) {
  int bits;
  std::memcpy(&bits, unit, 4);
  return _mm512_set1_epi32(bits);
}
inline Units load_units(const void* from) { return _mm512_loadu_si512(from); }
inline Units load_units(const void* from, int count) { return _mm512_maskz_loadu_epi32(first_lanes(count), from); }
inline void store_units(void* to, Units x) { _mm512_storeu_si512(to, x); }
inline void stream_units(void* to, Units x) { _mm512_stream_si512(static_cast<__m512i*>(to), x); }
inline Floats floats_of(Units x) { return _mm512_castsi512_ps(x); }
inline Units units_of(Floats x) { return _mm512_castps_si512(x); }

// The lower and the upper one of two bfloat16.
inline Floats lower_half(Units x) { return floats_of(_mm512_slli_epi32(x, 16)); }
inline Floats upper_half(Units x) {
  return floats_of(_mm512_and_si512(x, _mm512_set1_epi32(static_cast<int>(0xffff0000))));
}

// Sums of products of two bfloat16 in a unit: in one instruction, or the lower ones' first and then the upper ones'.
inline Floats add_pairs(Floats sum, Units a, Units b) {
#ifdef __AVX512BF16__
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
#else
  return fused(upper_half(a), upper_half(b), fused(lower_half(a), lower_half(b), sum));
#endif
}

inline Halves load_halves(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
inline Halves load_halves(const void* from, int count) { return _mm256_maskz_loadu_epi16(first_lanes(count), from); }
inline void store_halves(void* to, Halves x) { _mm256_storeu_si256(static_cast<__m256i*>(to), x); }
inline void store_halves(void* to, Halves x, int count) { _mm256_mask_storeu_epi16(to, first_lanes(count), x); }

inline Floats wide(Halves x) { return floats_of(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }

// To the nearest bfloat16, ties to even; a NaN stays one.
inline Halves narrow(Floats x) {
#ifdef __AVX512BF16__
  return (__m256i)_mm512_cvtneps_pbh(x);
#else
  const __m512i bits = units_of(x), upper = _mm512_srli_epi32(bits, 16);
  const __m512i half = _mm512_add_epi32(_mm512_set1_epi32(0x7fff), _mm512_and_si512(upper, _mm512_set1_epi32(1)));
  const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, half), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_mask_or_epi32(rounded, nan, upper, _mm512_set1_epi32(0x40)));
#endif
}

// The lanes of both in turn, to `first` and `second`.
inline void interleave(Floats even, Floats odd, Floats* first, Floats* second) {
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  *first = _mm512_permutex2var_ps(even, low, odd);
  *second = _mm512_permutex2var_ps(even, high, odd);
}

// 16 registers whose lanes change places with them: lane i of x[j] with lane j of x[i].
inline void turn(Units (&x)[kLanes]) {
  __m512i y[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
    y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4)
#pragma GCC unroll 2
    for (int j = 0; j < 2; j++) {
      x[i + 2 * j] = _mm512_unpacklo_epi64(y[i + j], y[i + j + 2]);
      x[i + 2 * j + 1] = _mm512_unpackhi_epi64(y[i + j], y[i + j + 2]);
    }
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) {
    y[j] = _mm512_shuffle_i32x4(x[j], x[4 + j], 0x88);
    y[4 + j] = _mm512_shuffle_i32x4(x[j], x[4 + j], 0xdd);
    y[8 + j] = _mm512_shuffle_i32x4(x[8 + j], x[12 + j], 0x88);
    y[12 + j] = _mm512_shuffle_i32x4(x[8 + j], x[12 + j], 0xdd);
  }
#pragma GCC unroll 8
  for (int j = 0; j < 8; j++) {
    x[j] = _mm512_shuffle_i32x4(y[j], y[8 + j], 0x88);
    x[8 + j] = _mm512_shuffle_i32x4(y[j], y[8 + j], 0xdd);
  }
}

// Lane i of both, as two bfloat16 side by side.
inline Units pair_up(Floats even, Floats odd) {
  const __m512i low = _mm512_cvtepu16_epi32(narrow(even));
  return _mm512_or_si512(low, _mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow(odd)), 16));
}

// Eight columns of 16 numbers, as rows of bfloat16 that begin `stride` apart, each at a multiple of 16 bytes.
inline void store_turned(const Floats (&columns)[kSums / 3], uint16_t* out, int stride) {
  const __m512i a = pair_up(columns[0], columns[1]), b = pair_up(columns[2], columns[3]);
  const __m512i c = pair_up(columns[4], columns[5]), d = pair_up(columns[6], columns[7]);
  const __m512i ab0 = _mm512_unpacklo_epi32(a, b), ab1 = _mm512_unpackhi_epi32(a, b);
  const __m512i cd0 = _mm512_unpacklo_epi32(c, d), cd1 = _mm512_unpackhi_epi32(c, d);
  // quarter q of whole[i]: the eight columns of row 4 q + i
  const __m512i whole[4] = {_mm512_unpacklo_epi64(ab0, cd0), _mm512_unpackhi_epi64(ab0, cd0),
                            _mm512_unpacklo_epi64(ab1, cd1), _mm512_unpackhi_epi64(ab1, cd1)};
  const auto write = [out, stride](int row, __m128i line) {
    _mm_store_si128(reinterpret_cast<__m128i*>(out + row * stride), line);
  };
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    write(i, _mm512_castsi512_si128(whole[i]));
    write(4 + i, _mm512_extracti32x4_epi32(whole[i], 1));
    write(8 + i, _mm512_extracti32x4_epi32(whole[i], 2));
    write(12 + i, _mm512_extracti32x4_epi32(whole[i], 3));
  }
}

}  // namespace
}  // namespace px

#include "vectors_math.h"
