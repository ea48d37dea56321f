// Products of bfloat16 with AVX-512 BF16: sums in float32, rounded once.
#ifdef PX_X86
#include "dense.h"

#include "attend_tiles_avx512.h"
#include "numbers.h"
#include "vectors_avx512.h"

namespace px {

namespace {

constexpr int kWide = kDenseColumns;

// Eight rows of weights, from which a row past the last is read as the last.
struct Rows {
  const uint32_t* at[kWide];
  Rows(const DenseWeight& weight, int64_t begin, int64_t units) {
    for (int c = 0; c < kWide; c++) {
      const int64_t row = begin + c < weight.rows ? begin + c : weight.rows - 1;
      at[c] = reinterpret_cast<const uint32_t*>(weight.weight) + row * units;
    }
  }
};

// sums[r][c]: rows 16 r ... 16 r + 15 of the panel times row c of the weights.
template <int R>
inline void multiply_rows(const DensePanel& panel, const Rows& rows, __m512 (&sums)[R][kWide]) {
  const uint32_t* pairs = panel.pairs;
  const uint32_t *w0 = rows.at[0], *w1 = rows.at[1], *w2 = rows.at[2], *w3 = rows.at[3];
  const uint32_t *w4 = rows.at[4], *w5 = rows.at[5], *w6 = rows.at[6], *w7 = rows.at[7];
  for (int64_t u = 0; u < panel.units; u++, pairs += kDenseLanes * R) {
    __m512i x[R];
#pragma GCC unroll 3
    for (int r = 0; r < R; r++) x[r] = _mm512_load_si512(pairs + kDenseLanes * r);
    const uint32_t* const w[kWide] = {w0, w1, w2, w3, w4, w5, w6, w7};
#pragma GCC unroll 8
    for (int c = 0; c < kWide; c++) {
      const __m512i both = every_lane(w[c] + u);
#pragma GCC unroll 3
      for (int r = 0; r < R; r++) sums[r][c] = DotBF16::add(sums[r][c], x[r], both);
    }
  }
}

template <int R>
inline void begin_sums(const DenseWeight& weight, int64_t begin, __m512 (&sums)[R][kWide]) {
#pragma GCC unroll 8
  for (int c = 0; c < kWide; c++) {
    const float bias = weight.bias && begin + c < weight.rows ? float_of_bits(static_cast<uint32_t>(weight.bias[begin + c]) << 16) : 0.0f;
#pragma GCC unroll 3
    for (int r = 0; r < R; r++) sums[r][c] = _mm512_set1_ps(bias);
  }
}

// Lane i of both, as two bfloat16 side by side.
inline __m512i pair_up(__m512 even, __m512 odd) {
  const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(even));
  const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(odd));
  return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

// Eight columns of 16 rows to where they belong: `out` is the first row's, `rows` of them are there.
inline void put(const __m512 (&sums)[kWide], uint16_t* out, int64_t stride, int64_t rows, int64_t columns) {
  const __m512i a = pair_up(sums[0], sums[1]), b = pair_up(sums[2], sums[3]);
  const __m512i c = pair_up(sums[4], sums[5]), d = pair_up(sums[6], sums[7]);
  const __m512i ab0 = _mm512_unpacklo_epi32(a, b), ab1 = _mm512_unpackhi_epi32(a, b);
  const __m512i cd0 = _mm512_unpacklo_epi32(c, d), cd1 = _mm512_unpackhi_epi32(c, d);
  // quarter q of whole[i]: the eight columns of row 4 q + i
  const __m512i whole[4] = {_mm512_unpacklo_epi64(ab0, cd0), _mm512_unpackhi_epi64(ab0, cd0),
                            _mm512_unpacklo_epi64(ab1, cd1), _mm512_unpackhi_epi64(ab1, cd1)};
  alignas(64) uint16_t lines[4][4][kWide];
  for (int i = 0; i < 4; i++) _mm512_store_si512(lines[i], whole[i]);
  const auto mask = static_cast<__mmask8>((1u << columns) - 1);
  for (int row = 0; row < rows; row++) {
    const __m128i line = _mm_load_si128(reinterpret_cast<const __m128i*>(lines[row % 4][row / 4]));
    _mm_mask_storeu_epi16(out + row * stride, mask, line);
  }
}

template <int R>
void strip(const DensePanel& panel, const DenseWeight& weight, const DenseWeight* up, int64_t begin, int64_t end) {
  for (int64_t n = begin; n < end; n += kWide) {
    __m512 sums[R][kWide];
    begin_sums<R>(weight, n, sums);
    multiply_rows<R>(panel, Rows(weight, n, panel.units), sums);
    if (up) {
      __m512 gates[R][kWide];
      for (int r = 0; r < R; r++)
        for (int c = 0; c < kWide; c++) gates[r][c] = silu(sums[r][c]);
      begin_sums<R>(*up, n, sums);
      multiply_rows<R>(panel, Rows(*up, n, panel.units), sums);
      for (int r = 0; r < R; r++)
        for (int c = 0; c < kWide; c++) sums[r][c] = _mm512_mul_ps(sums[r][c], gates[r][c]);
    }
    const int64_t columns = weight.rows - n < kWide ? weight.rows - n : kWide;
    for (int r = 0; r < R; r++) {
      const int64_t left = panel.rows - kDenseLanes * r;
      put(sums[r], weight.out + (panel.first + kDenseLanes * r) * weight.rows + n, weight.rows,
          left < kDenseLanes ? left : kDenseLanes, columns);
    }
  }
}

alignas(64) const char nothing[64] = {};

}  // namespace

void dense_pack_avx512(const uint16_t* x, int64_t stride, int64_t rows, int64_t units, uint32_t* to) {
  const int64_t lanes = (rows + kDenseLanes - 1) / kDenseLanes * kDenseLanes;
  for (int64_t u = 0; u < units; u += 16) {
    const int64_t left = units - u;
    const __mmask16 mask = first_lanes(static_cast<int>(left < 16 ? left : 16));
    for (int64_t first = 0; first < lanes; first += kDenseLanes) {
      const char* from[kDenseLanes];
      for (int i = 0; i < kDenseLanes; i++)
        from[i] = first + i < rows ? reinterpret_cast<const char*>(x + (first + i) * stride + 2 * u) : nothing;
      __m512i pairs[16];
      transpose(from, 0, mask, pairs);
      for (int i = 0; i < 16 && i < left; i++) _mm512_store_si512(to + (u + i) * lanes + first, pairs[i]);
    }
  }
}

void dense_strip_avx512(const DensePanel& panel, const DenseWeight& weight, const DenseWeight* up, int64_t begin,
                        int64_t end) {
  if (panel.rows > 2 * kDenseLanes) strip<3>(panel, weight, up, begin, end);
  else if (panel.rows > kDenseLanes) strip<2>(panel, weight, up, begin, end);
  else strip<1>(panel, weight, up, begin, end);
}

}  // namespace px
#endif
