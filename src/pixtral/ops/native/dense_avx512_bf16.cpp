// Products of bfloat16 with AVX-512 BF16.
#ifdef PX_X86
#include "dense_tiles_avx512.h"

namespace px {

namespace {

struct Pairs {
  using Load = LoadUnits;
  static constexpr int kUnit = 2;
  static constexpr int64_t kBlock = 1 << 20;  // a panel stays in the second cache whole

  template <int R>
  static void multiply(const uint32_t* pairs, int64_t units, const Rows& rows, __m512 (&aside)[R][kWide], bool more) {
    TileSums<R> sums(aside, more);
    const uint32_t* w[kWide];
#pragma GCC unroll 8
    for (int c = 0; c < kWide; c++) w[c] = reinterpret_cast<const uint32_t*>(rows.at[c]);
    for (int64_t u = 0; u < units; u++, pairs += kDenseLanes * R) {
      __m512i x[R];
#pragma GCC unroll 3
      for (int r = 0; r < R; r++) x[r] = _mm512_load_si512(pairs + kDenseLanes * r);
#pragma GCC unroll 8
      for (int c = 0; c < kWide; c++) {
        const __m512i both = every_lane(w[c] + u);
#pragma GCC unroll 3
        for (int r = 0; r < R; r++) sums.of[r][c] = DotBF16::add(sums.of[r][c], x[r], both);
      }
    }
    sums.put_aside(aside);
  }
};

}  // namespace

const DenseKernels dense_avx512_bf16 = {Pairs::kUnit, pack_avx512<Pairs>, strip_avx512<Pairs>, few_avx512};

}  // namespace px
#endif
