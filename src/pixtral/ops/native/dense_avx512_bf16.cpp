// Products of bfloat16 with AVX-512 BF16.
#ifdef PX_X86
#include "vectors_avx512.h"

#include "dense_tiles.h"

namespace px {

namespace {

struct Pairs {
  using Load = LoadUnits;
  static constexpr int kUnit = 2, kStrip = 256, kPanels = 1, kTiles = 1;
  static constexpr int64_t kBlock = 1 << 20;  // a panel stays in the second cache whole

  // Weights as they lie in memory.
  struct Tile {
    const uint32_t* at[kWide];
    void read(const Rows& rows, int64_t) {
      for (int c = 0; c < kWide; c++) at[c] = reinterpret_cast<const uint32_t*>(rows.at[c]);
    }
  };

  template <int R>
  static void multiply(const uint32_t* pairs, int64_t units, const Tile& tile, Floats (&aside)[R][kWide], bool more) {
    TileSums<R> sums(aside, more);
    const Tile weights = tile;
    for (int64_t u = 0; u < units; u++, pairs += kLanes * R) {
      Units x[R];
#pragma GCC unroll 3
      for (int r = 0; r < R; r++) x[r] = load_units(pairs + kLanes * r);
#pragma GCC unroll 8
      for (int c = 0; c < kWide; c++) {
        const Units both = splat_unit(weights.at[c] + u);
#pragma GCC unroll 3
        for (int r = 0; r < R; r++) sums.of[r][c] = DotBF16::add(sums.of[r][c], x[r], both);
      }
    }
    sums.put_aside(aside);
  }
};

}  // namespace

const DenseKernels dense_avx512_bf16 = dense_kernels<Pairs>();

}  // namespace px
#endif
