// Products of bfloat16 with AVX-512 where it multiplies float32 only: activations are packed as float32, weights become
// float32 some columns at a time, in the first cache, for four panels.
#ifdef PX_X86
#include "dense_tiles_avx512.h"

namespace px {

namespace {

struct Singles {
  using Load = LoadWide;
  static constexpr int kUnit = 1, kStrip = 128, kPanels = 4;
  static constexpr int64_t kBlock = 512;  // of weights 16 KB, of activations 96 KB a panel

  struct Tile {
    alignas(64) float of[kWide][kBlock + 16];  // rows of a power of two would meet in few sets of the cache
    Tile(const Rows& rows, int64_t units) {
      for (int c = 0; c < kWide; c++)
        for (int64_t u = 0; u < units; u += 16) {
          const __mmask16 mask = first_lanes(static_cast<int>(units - u < 16 ? units - u : 16));
          _mm512_store_ps(of[c] + u, wide(_mm256_maskz_loadu_epi16(mask, rows.at[c] + u)));
          if (u % 32 == 0) _mm_prefetch(rows.at[c] + kWide * rows.width + u, _MM_HINT_T1);  // of the next tile
        }
    }
  };

  template <int R>
  static void multiply(const uint32_t* columns, int64_t units, const Tile& tile, __m512 (&aside)[R][kWide], bool more) {
    TileSums<R> sums(aside, more);
    const float* x = reinterpret_cast<const float*>(columns);
    for (int64_t u = 0; u < units; u++, x += kDenseLanes * R) {
      __m512 column[R];
#pragma GCC unroll 3
      for (int r = 0; r < R; r++) column[r] = _mm512_load_ps(x + kDenseLanes * r);
#pragma GCC unroll 8
      for (int c = 0; c < kWide; c++) {
        const __m512 weight = _mm512_set1_ps(tile.of[c][u]);
#pragma GCC unroll 3
        for (int r = 0; r < R; r++) sums.of[r][c] = _mm512_fmadd_ps(column[r], weight, sums.of[r][c]);
      }
    }
    sums.put_aside(aside);
  }
};

}  // namespace

const DenseKernels dense_avx512 = dense_kernels<Singles>();

}  // namespace px
#endif
