// Products of bfloat16 where the CPU multiplies float32 only: activations are packed as float32, weights become float32
// some columns at a time, for several panels. The vectors of an instruction set are included before.
#pragma once

#include "dense_tiles.h"

namespace px {
namespace {

// Block: columns of weights that are float32 at a time; Tiles: tiles of them; Panels: that they are used for.
template <int64_t Block, int Tiles, int Panels>
struct DenseSingles {
  using Load = LoadWide;
  static constexpr int kUnit = 1, kStrip = 128, kPanels = Panels, kTiles = Tiles;
  static constexpr int64_t kBlock = Block;

  struct Tile {
    alignas(64) float of[kWide][kBlock + kLanes];  // rows of a power of two would meet in few sets of the cache
    void read(const Rows& rows, int64_t units) {
      for (int c = 0; c < kWide; c++)
        for (int64_t u = 0; u < units; u += kLanes) {
          const int left = static_cast<int>(units - u < kLanes ? units - u : kLanes);
          store(of[c] + u, wide(load_halves(rows.at[c] + u, left)));
          if (u % 32 == 0) _mm_prefetch(rows.at[c] + kWide * rows.width + u, _MM_HINT_T1);  // of the next tile
        }
    }
  };

  template <int R>
  static void multiply(const uint32_t* columns, int64_t units, const Tile& tile, Floats (&aside)[R][kWide], bool more) {
    TileSums<R> sums(aside, more);
    const float* x = reinterpret_cast<const float*>(columns);
    for (int64_t u = 0; u < units; u++, x += kLanes * R) {
      Floats column[R];
#pragma GCC unroll 3
      for (int r = 0; r < R; r++) column[r] = load(x + kLanes * r);
#pragma GCC unroll 8
      for (int c = 0; c < kWide; c++) {
        const Floats weight = splat(tile.of[c][u]);
#pragma GCC unroll 3
        for (int r = 0; r < R; r++) sums.of[r][c] = fused(column[r], weight, sums.of[r][c]);
      }
    }
    sums.put_aside(aside);
  }
};

}  // namespace
}  // namespace px
