// Small products for attention with AVX-512, on 32-bit units: one float, two bfloat16 or four bytes, whatever one
// instruction multiplies and adds up. Every sum runs over its units in order, in one register: results do not depend on
// the tile that they are worked out in.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <utility>

#include "vectors_avx512.h"

namespace px {
namespace {

constexpr int kPanel = 32;    // keys of one tile of scores
constexpr int kFewRows = 4;   // rows that are not worth transposing keys in memory for
constexpr int kColumns = 64;  // channels of one tile of values

struct DotF32 {
  using Sum = __m512;
  static __m512 zero() { return _mm512_setzero_ps(); }
  static __m512 add(__m512 sum, __m512i a, __m512i b) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum);
  }
  static __m512 get(const void* from) { return _mm512_loadu_ps(from); }
  static void put(void* to, __m512 sum) { _mm512_storeu_ps(to, sum); }
};

// Two bfloat16 in a unit: in one instruction, or the lower ones' product first and then the upper ones'.
struct DotBF16 : DotF32 {
  static __m512 add(__m512 sum, __m512i a, __m512i b) {
#ifdef __AVX512BF16__
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
#else
    const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000));
    sum = DotF32::add(sum, _mm512_slli_epi32(a, 16), _mm512_slli_epi32(b, 16));
    return DotF32::add(sum, _mm512_and_si512(a, upper), _mm512_and_si512(b, upper));
#endif
  }
};

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

inline __m512i every_lane(const uint32_t* unit) { return _mm512_set1_epi32(static_cast<int>(*unit)); }

inline __mmask16 first_lanes(int count) {
  return static_cast<__mmask16>(count <= 0 ? 0 : count >= 16 ? 0xffff : (1u << count) - 1);
}

// C (rows, 16 * Columns) = A (rows, depth) x B (depth, 16 * Columns), or that much more.
struct Product {
  const uint32_t* a;
  int64_t a_stride;
  const uint32_t* b;  // aligned to 64 bytes
  int64_t b_stride;
  uint32_t* c;
  int64_t c_stride;
  int depth;
};

template <class Dot, int Rows, int Columns, bool More>
void tile(const Product& product) {
  const Product p = product;
  typename Dot::Sum sums[Rows][Columns];
#pragma GCC unroll 12
  for (int r = 0; r < Rows; r++)
#pragma GCC unroll 4
    for (int j = 0; j < Columns; j++) sums[r][j] = More ? Dot::get(p.c + r * p.c_stride + 16 * j) : Dot::zero();
  const uint32_t *a = p.a, *b = p.b;
  for (int k = 0; k < p.depth; k++, a++, b += p.b_stride) {
    __m512i columns[Columns];
#pragma GCC unroll 4
    for (int j = 0; j < Columns; j++) columns[j] = _mm512_load_si512(b + 16 * j);
#pragma GCC unroll 12
    for (int r = 0; r < Rows; r++) {
      const __m512i x = every_lane(a + r * p.a_stride);
#pragma GCC unroll 4
      for (int j = 0; j < Columns; j++) sums[r][j] = Dot::add(sums[r][j], x, columns[j]);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < Rows; r++)
#pragma GCC unroll 4
    for (int j = 0; j < Columns; j++) Dot::put(p.c + r * p.c_stride + 16 * j, sums[r][j]);
}

template <class Dot, int Columns, bool More, int... Counts>
inline void tile_of(int rows, const Product& p, std::integer_sequence<int, Counts...>) {
  static constexpr void (*tiles[])(const Product&) = {tile<Dot, Counts + 1, Columns, More>...};
  tiles[rows - 1](p);
}

// Any number of rows, as many at a time as fill 24 of the 32 registers with sums.
template <class Dot, int Columns, bool More>
inline void multiply(int rows, Product p) {
  constexpr int most = 24 / Columns;
  for (; rows > 0; rows -= most) {
    tile_of<Dot, Columns, More>(rows < most ? rows : most, p, std::make_integer_sequence<int, most>());
    p.a += most * p.a_stride;
    p.c += most * p.c_stride;
  }
}

// 16 units as they lie in memory.
struct LoadUnits {
  static constexpr int kBytes = 4;
  static __m512i load(const char* from, __mmask16 mask) { return _mm512_maskz_loadu_epi32(mask, from); }
};

// 16 bfloat16 as units of one float.
struct LoadWide {
  static constexpr int kBytes = 2;
  static __m512i load(const char* from, __mmask16 mask) {
    return _mm512_castps_si512(wide(_mm256_maskz_loadu_epi16(mask, from)));
  }
};

// 16 units of 16 rows each, from rows to columns: x[unit] has that unit of every row. Whole cache lines are read at
// once, because lines at the distance of cache rows fall into few sets of the first cache.
template <class Load>
inline void transpose(const char* const* rows, int64_t unit, __mmask16 mask, __m512i (&x)[16]) {
  __m512i y[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) x[i] = Load::load(rows[i] + unit * Load::kBytes, mask);
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

}  // namespace
}  // namespace px
