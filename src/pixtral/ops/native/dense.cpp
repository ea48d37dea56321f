// Products with bfloat16 weights: tiles of outputs, handed to the threads.
#include "dense.h"

#include "api.h"
#include "cpu.h"
#include "pool.h"

namespace px {

namespace {

constexpr int64_t kWork = 1 << 19;  // products of one task: fewer are not worth a second thread

}  // namespace

}  // namespace px

// Columns up to which `px_dense` takes weights, 0 where this machine has no instructions for it.
PX_API int64_t px_dense_max_k() { return px::isa() == px::Isa::Avx512 ? px::kDenseMaxK : 0; }

// out (rows, n) = x (rows, k) * weight (n, k)^T + bias (n); bias may be null; k is even and at most px_dense_max_k().
PX_API void px_dense(const uint16_t* x, int64_t stride, const uint16_t* weight, const uint16_t* bias, uint16_t* out,
                     int64_t rows, int64_t n, int64_t k, int threads) {
#ifdef PX_X86
  const px::DenseArgs args{x, stride, weight, bias, out, rows, n, k};
  const int64_t tiles = (n + px::kDenseTile - 1) / px::kDenseTile;
  const int64_t each = px::kDenseTile * k * (rows + 4);  // the tile's transposition costs about four rows
  const int64_t group = each >= px::kWork ? 1 : px::kWork / each;
  px::parallel(threads, (tiles + group - 1) / group, [&](int64_t task) {
    const int64_t end = (task + 1) * group < tiles ? (task + 1) * group : tiles;
    for (int64_t tile = task * group; tile < end; tile++) px::dense_tile_avx512(args, tile * px::kDenseTile);
  });
#else
  (void)x, (void)stride, (void)weight, (void)bias, (void)out, (void)rows, (void)n, (void)k, (void)threads;
#endif
}
