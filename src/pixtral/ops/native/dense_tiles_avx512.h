// Products of bfloat16 with AVX-512: sums in float32, rounded once. D is what differs between CPUs that multiply pairs of
// bfloat16 and those that multiply float32: kUnit, columns in a unit; Load, how units of x are read; kBlock, units after
// which sums are put aside for the next rows of weights; kStrip and kPanels, the sizes of a task; Tile, eight rows of
// weights as multiply() takes them.
#pragma once

#include "attend_tiles_avx512.h"
#include "dense.h"
#include "numbers.h"

namespace px {

namespace {

constexpr int kWide = kDenseColumns;

// Eight rows of weights from a column on; a row past the last is read as the last.
struct Rows {
  const uint16_t* at[kWide];
  int64_t width;
  Rows(const DenseWeight& weight, int64_t begin, int64_t width, int64_t column) : width(width) {
    for (int c = 0; c < kWide; c++) {
      const int64_t row = begin + c < weight.rows ? begin + c : weight.rows - 1;
      at[c] = weight.weight + row * width + column;
    }
  }
};

float bias_of(const DenseWeight& weight, int64_t row) {
  return weight.bias && row < weight.rows ? float_of_bits(static_cast<uint32_t>(weight.bias[row]) << 16) : 0.0f;
}

// Lane i of both, as two bfloat16 side by side.
inline __m512i pair_up(__m512 even, __m512 odd) {
  const __m512i low = _mm512_cvtepu16_epi32(narrow(even));
  return _mm512_or_si512(low, _mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow(odd)), 16));
}

constexpr int kLine = 32;               // results of a row that are written together: a line of the cache
constexpr int64_t kStreamed = 1 << 15;  // results of a row from which they are written past the caches

// Eight columns of 16 rows into lines that begin kLine numbers apart.
inline void put(const __m512 (&sums)[kWide], uint16_t* out) {
  const __m512i a = pair_up(sums[0], sums[1]), b = pair_up(sums[2], sums[3]);
  const __m512i c = pair_up(sums[4], sums[5]), d = pair_up(sums[6], sums[7]);
  const __m512i ab0 = _mm512_unpacklo_epi32(a, b), ab1 = _mm512_unpackhi_epi32(a, b);
  const __m512i cd0 = _mm512_unpacklo_epi32(c, d), cd1 = _mm512_unpackhi_epi32(c, d);
  // quarter q of whole[i]: the eight columns of row 4 q + i
  const __m512i whole[4] = {_mm512_unpacklo_epi64(ab0, cd0), _mm512_unpackhi_epi64(ab0, cd0),
                            _mm512_unpacklo_epi64(ab1, cd1), _mm512_unpackhi_epi64(ab1, cd1)};
  const auto write = [out](int row, __m128i line) {
    _mm_store_si128(reinterpret_cast<__m128i*>(out + row * kLine), line);
  };
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    write(i, _mm512_castsi512_si128(whole[i]));
    write(4 + i, _mm512_extracti32x4_epi32(whole[i], 1));
    write(8 + i, _mm512_extracti32x4_epi32(whole[i], 2));
    write(12 + i, _mm512_extracti32x4_epi32(whole[i], 3));
  }
}

// The lines of a panel to where they belong.
inline void write_lines(const uint16_t (&lines)[kDensePanel][kLine], const DensePanel& panel, const DenseWeight& weight,
                        int64_t begin) {
  const int64_t left = weight.rows - begin;
  const auto mask = static_cast<__mmask32>(left >= kLine ? 0xffffffffu : (1u << left) - 1);
  uint16_t* out = weight.out + panel.first * weight.rows + begin;
  const bool stream = weight.rows >= kStreamed && weight.rows % kLine == 0 && reinterpret_cast<uintptr_t>(out) % 64 == 0;
  for (int64_t row = 0; row < panel.rows; row++, out += weight.rows) {
    const __m512i line = _mm512_load_si512(lines[row]);
    if (stream) _mm512_stream_si512(reinterpret_cast<__m512i*>(out), line);
    else _mm512_mask_storeu_epi16(out, mask, line);
  }
  if (stream) _mm_sfence();
}

// Sums of a strip and a panel: of each eight rows of weights those of R registers of x.
template <class D, int R>
struct StripSums {
  alignas(64) __m512 of[D::kStrip / kWide][R][kWide];
};

// What lies in memory between two blocks, in registers within one.
template <int R>
struct TileSums {
  __m512 of[R][kWide];
  TileSums(const __m512 (&aside)[R][kWide], bool more) {
#pragma GCC unroll 3
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
      for (int c = 0; c < kWide; c++) of[r][c] = more ? aside[r][c] : _mm512_setzero_ps();
  }
  void put_aside(__m512 (&aside)[R][kWide]) const {
#pragma GCC unroll 3
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
      for (int c = 0; c < kWide; c++) aside[r][c] = of[r][c];
  }
};

template <class D, int R>
void sum_up(const DensePanel* panels, int count, const DenseWeight& weight, int64_t begin, int64_t end,
            StripSums<D, R>* sums) {
  const int64_t all = panels[0].units;
  for (int64_t unit = 0; unit < all; unit += D::kBlock) {
    const int64_t units = all - unit < D::kBlock ? all - unit : D::kBlock;
    for (int64_t n = begin; n < end; n += kWide) {
      const typename D::Tile tile(Rows(weight, n, all * D::kUnit, unit * D::kUnit), units);
      for (int i = 0; i < count; i++)
        D::template multiply<R>(panels[i].columns + unit * kDenseLanes * R, units, tile, sums[i].of[(n - begin) / kWide],
                                unit > 0);
    }
  }
  if (weight.bias == nullptr) return;
  for (int i = 0; i < count; i++)
    for (int64_t n = begin; n < end; n += kWide)
      for (int r = 0; r < R; r++)
        for (int c = 0; c < kWide; c++) {
          __m512& sum = sums[i].of[(n - begin) / kWide][r][c];
          sum = _mm512_add_ps(sum, _mm512_set1_ps(bias_of(weight, n + c)));
        }
}

template <class D, int R>
void strip(const DensePanel* panels, int count, const DenseWeight& weight, const DenseWeight* up, int64_t begin,
           int64_t end) {
  StripSums<D, R> sums[D::kPanels], others[D::kPanels];
  alignas(64) uint16_t lines[kDensePanel][kLine];
  sum_up<D, R>(panels, count, weight, begin, end, sums);
  if (up) sum_up<D, R>(panels, count, *up, begin, end, others);
  for (int i = 0; i < count; i++)
    for (int64_t line = begin; line < end; line += kLine) {
      for (int64_t n = line; n < line + kLine && n < end; n += kWide) {
        auto& tile = sums[i].of[(n - begin) / kWide];
        for (int r = 0; r < R; r++) {
          for (int c = 0; up && c < kWide; c++)
            tile[r][c] = _mm512_mul_ps(others[i].of[(n - begin) / kWide][r][c], silu(tile[r][c]));
          put(tile[r], lines[kDenseLanes * r] + (n - line));
        }
      }
      write_lines(lines, panels[i], weight, line);
    }
}

alignas(64) const char nothing[64] = {};

// sums[r]: row r of x times rows begin ... begin + 15 of the weights.
template <int R>
inline void sum_few(const DenseFew& few, const DenseWeight& weight, int64_t begin, __m512 (&sums)[R]) {
  const char* rows[16];
  for (int i = 0; i < 16; i++) {
    const int64_t row = begin + i < weight.rows ? begin + i : weight.rows - 1;
    rows[i] = reinterpret_cast<const char*>(weight.weight + row * few.width);
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) sums[r] = _mm512_setzero_ps();
  const int64_t next = 32 * few.width;  // bytes of 16 rows
  const int64_t units = few.width / 2;
  for (int64_t u = 0; u < units; u += 16) {
    const int64_t left = units - u < 16 ? units - u : 16;
    __m512i turned[16];
    transpose<LoadUnits>(rows, u, first_lanes(static_cast<int>(left)), turned);
    for (int i = 0; i < 16; i++) _mm_prefetch(rows[i] + next + 4 * u, _MM_HINT_T1);
    const uint32_t* x[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) x[r] = reinterpret_cast<const uint32_t*>(few.x + r * few.stride) + u;
    if (left == 16) {
#pragma GCC unroll 16
      for (int i = 0; i < 16; i++)
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) sums[r] = DotBF16::add(sums[r], every_lane(x[r] + i), turned[i]);
    } else {
      for (int i = 0; i < left; i++)
        for (int r = 0; r < R; r++) sums[r] = DotBF16::add(sums[r], every_lane(x[r] + i), turned[i]);
    }
  }
  if (weight.bias == nullptr) return;
  alignas(64) float bias[16];
  for (int i = 0; i < 16; i++) bias[i] = bias_of(weight, begin + i);
  for (int r = 0; r < R; r++) sums[r] = _mm512_add_ps(sums[r], _mm512_load_ps(bias));
}

template <int R>
void few_rows(const DenseFew& few, const DenseWeight& weight, const DenseWeight* up, int64_t begin, int64_t end) {
  for (int64_t n = begin; n < end; n += 16) {
    __m512 sums[R];
    sum_few<R>(few, weight, n, sums);
    if (up) {
      __m512 others[R];
      sum_few<R>(few, *up, n, others);
      for (int r = 0; r < R; r++) sums[r] = _mm512_mul_ps(others[r], silu(sums[r]));
    }
    const __mmask16 mask = first_lanes(static_cast<int>(weight.rows - n < 16 ? weight.rows - n : 16));
    for (int r = 0; r < R; r++)
      _mm256_mask_storeu_epi16(weight.out + r * weight.rows + n, mask, narrow(sums[r]));
  }
}

inline void few_avx512(const DenseFew& few, const DenseWeight& weight, const DenseWeight* up, int64_t begin, int64_t end) {
  static constexpr decltype(&few_rows<1>) kinds[kDenseFew] = {few_rows<1>, few_rows<2>, few_rows<3>, few_rows<4>,
                                                               few_rows<5>, few_rows<6>, few_rows<7>, few_rows<8>};
  kinds[few.rows - 1](few, weight, up, begin, end);
}

template <class D>
void pack_avx512(const uint16_t* x, int64_t stride, int64_t rows, int64_t units, uint32_t* to) {
  const int64_t lanes = (rows + kDenseLanes - 1) / kDenseLanes * kDenseLanes;
  for (int64_t u = 0; u < units; u += 16) {
    const int64_t left = units - u;
    const __mmask16 mask = first_lanes(static_cast<int>(left < 16 ? left : 16));
    for (int64_t first = 0; first < lanes; first += kDenseLanes) {
      const char* from[kDenseLanes];
      for (int i = 0; i < kDenseLanes; i++)
        from[i] = first + i < rows ? reinterpret_cast<const char*>(x + (first + i) * stride + D::kUnit * u) : nothing;
      __m512i turned[16];
      transpose<typename D::Load>(from, 0, mask, turned);
      for (int i = 0; i < 16 && i < left; i++) _mm512_store_si512(to + (u + i) * lanes + first, turned[i]);
    }
  }
}

template <class D>
void multiply_avx512(const DensePanel* panels, int count, const DenseWeight& weight, const DenseWeight* up,
                     int64_t begin, int64_t end) {
  static_assert(D::kPanels <= kDenseMostPanels, "the driver hands out no more");
  const int64_t rows = panels[0].rows;
  if (rows > 2 * kDenseLanes) strip<D, 3>(panels, count, weight, up, begin, end);
  else if (rows > kDenseLanes) strip<D, 2>(panels, count, weight, up, begin, end);
  else strip<D, 1>(panels, count, weight, up, begin, end);
}

template <class D>
constexpr DenseKernels dense_kernels() {
  return {D::kUnit, D::kStrip, D::kPanels, pack_avx512<D>, multiply_avx512<D>, few_avx512};
}

}  // namespace
}  // namespace px
