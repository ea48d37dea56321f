// A tile of weights is transposed so that each lane is an output; then every row of x runs through it, two numbers of
// a row at a time, always in the same order.
#ifdef PX_X86
#include "dense.h"

#include <immintrin.h>

#include <cstring>

namespace px {

namespace {

constexpr int kRows = 8;               // of x, at a time
constexpr int64_t kStreamed = 1 << 15;  // outputs of a row from which they are written past the cache

// Pairs (k, k + 1), ..., 16 of them, of 16 outputs: out[2 * p] gets pair p of all.
void transpose(const uint16_t* weight, int64_t stride, int64_t outputs, int64_t left, __m512i* out) {
  const __mmask16 pairs = static_cast<__mmask16>(left >= 32 ? 0xffff : (1u << (left / 2)) - 1);
  __m512i a[16], b[16];
  for (int i = 0; i < 16; i++) {
    _mm_prefetch(reinterpret_cast<const char*>(weight + (kDenseTile + i) * stride), _MM_HINT_T0);  // for the next tile
    a[i] = i < outputs ? _mm512_maskz_loadu_epi32(pairs, weight + i * stride) : _mm512_setzero_si512();
  }
  for (int i = 0; i < 8; i++) {
    b[2 * i] = _mm512_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
    b[2 * i + 1] = _mm512_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
  }
  for (int i = 0; i < 4; i++) {
    a[4 * i] = _mm512_unpacklo_epi64(b[4 * i], b[4 * i + 2]);
    a[4 * i + 1] = _mm512_unpackhi_epi64(b[4 * i], b[4 * i + 2]);
    a[4 * i + 2] = _mm512_unpacklo_epi64(b[4 * i + 1], b[4 * i + 3]);
    a[4 * i + 3] = _mm512_unpackhi_epi64(b[4 * i + 1], b[4 * i + 3]);
  }
  for (int i = 0; i < 4; i++) {
    b[i] = _mm512_shuffle_i32x4(a[i], a[4 + i], 0x88);
    b[4 + i] = _mm512_shuffle_i32x4(a[i], a[4 + i], 0xdd);
    b[8 + i] = _mm512_shuffle_i32x4(a[8 + i], a[12 + i], 0x88);
    b[12 + i] = _mm512_shuffle_i32x4(a[8 + i], a[12 + i], 0xdd);
  }
  for (int i = 0; i < 4; i++) {
    out[2 * i] = _mm512_shuffle_i32x4(b[i], b[8 + i], 0x88);
    out[2 * (8 + i)] = _mm512_shuffle_i32x4(b[i], b[8 + i], 0xdd);
    out[2 * (4 + i)] = _mm512_shuffle_i32x4(b[4 + i], b[12 + i], 0x88);
    out[2 * (12 + i)] = _mm512_shuffle_i32x4(b[4 + i], b[12 + i], 0xdd);
  }
}

template <int R>
void run_rows(const DenseArgs& args, int64_t row, const __m512i* tile, int64_t first, __mmask32 mask,
              bool stream) {
  __m512 sums[R][2];
  for (int r = 0; r < R; r++) sums[r][0] = sums[r][1] = _mm512_setzero_ps();
  const uint16_t* x = args.x + row * args.stride;
  for (int64_t p = 0; p < args.k / 2; p++) {
    const __m512bh w0 = (__m512bh)_mm512_load_si512(tile + 2 * p);
    const __m512bh w1 = (__m512bh)_mm512_load_si512(tile + 2 * p + 1);
    for (int r = 0; r < R; r++) {
      int pair;
      std::memcpy(&pair, x + r * args.stride + 2 * p, sizeof pair);
      const __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
      sums[r][0] = _mm512_dpbf16_ps(sums[r][0], both, w0);
      sums[r][1] = _mm512_dpbf16_ps(sums[r][1], both, w1);
    }
  }
  __m512 bias[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  if (args.bias != nullptr)
    for (int half = 0; half < 2; half++) {
      const auto part = static_cast<__mmask16>(half ? mask >> 16 : mask);
      const __m256i bits = _mm256_maskz_loadu_epi16(part, args.bias + first + 16 * half);
      bias[half] = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
    }
  for (int r = 0; r < R; r++) {
    if (args.bias != nullptr)
      for (int half = 0; half < 2; half++) sums[r][half] = _mm512_add_ps(sums[r][half], bias[half]);
    const __m512i bits = (__m512i)_mm512_cvtne2ps_pbh(sums[r][1], sums[r][0]);
    uint16_t* out = args.out + (row + r) * args.n + first;
    if (stream)
      _mm512_stream_si512(reinterpret_cast<__m512i*>(out), bits);  // past the cache: rows so long would push it out
    else
      _mm512_mask_storeu_epi16(out, mask, bits);
  }
}

}  // namespace

void dense_tile_avx512(const DenseArgs& args, int64_t first) {
  alignas(64) static thread_local __m512i tile[kDenseMaxK];
  const int64_t outputs = args.n - first;
  for (int64_t k = 0; k < args.k; k += 32)
    for (int half = 0; half < 2; half++)
      transpose(args.weight + (first + 16 * half) * args.k + k, args.k, outputs - 16 * half, args.k - k, tile + k + half);
  const auto mask = static_cast<__mmask32>(outputs >= 32 ? 0xffffffffu : (1u << outputs) - 1);
  const bool stream =
      args.n >= kStreamed && args.n % 32 == 0 && reinterpret_cast<uintptr_t>(args.out) % 64 == 0 && outputs >= 32;
  int64_t row = 0;
  for (; row + kRows <= args.rows; row += kRows) run_rows<kRows>(args, row, tile, first, mask, stream);
  for (; row + 4 <= args.rows; row += 4) run_rows<4>(args, row, tile, first, mask, stream);
  for (; row + 2 <= args.rows; row += 2) run_rows<2>(args, row, tile, first, mask, stream);
  for (; row < args.rows; row++) run_rows<1>(args, row, tile, first, mask, stream);
  if (stream) _mm_sfence();
}

}  // namespace px
#endif
