// Norms and rotary embeddings: rows in blocks, handed to the threads.
#include "api.h"
#include "cpu.h"
#include "pool.h"
#include "rowwise_kernels.h"

namespace px {

namespace {

constexpr int64_t kBlock = 16;  // rows of one task; fewer rows than that are not worth a second thread

const RowwiseKernels& kernels() {
#ifdef PX_X86
  if (isa() >= Isa::Avx512) return rowwise_avx512;
  if (isa() == Isa::Avx2) return rowwise_avx2;
#endif
  return rowwise_portable;
}

template <class Row>
void for_rows(int threads, int64_t rows, Row&& row) {
  parallel(threads, (rows + kBlock - 1) / kBlock, [&](int64_t task) {
    const int64_t end = (task + 1) * kBlock < rows ? (task + 1) * kBlock : rows;
    for (int64_t i = task * kBlock; i < end; i++) row(i);
  });
}

}  // namespace

}  // namespace px

// x and out (rows, width), x with `stride` numbers from row to row.
PX_API void px_rms_norm(const uint16_t* x, int64_t stride, const uint16_t* weight, uint16_t* out, int64_t rows,
                        int64_t width, float eps, int threads) {
  const auto norm = px::kernels().norm;
  px::for_rows(threads, rows, [&](int64_t i) { norm(x + i * stride, weight, out + i * width, width, eps); });
}

// q (rows, heads, 2 * half) and k (rows, key_heads, 2 * half); cos and sin (rows, half); all contiguous.
PX_API void px_rotate(const uint16_t* q, const uint16_t* k, const uint16_t* cos, const uint16_t* sin, uint16_t* q_out,
                      uint16_t* k_out, int64_t rows, int64_t heads, int64_t key_heads, int64_t half, int threads) {
  const auto rotate = px::kernels().rotate;
  px::for_rows(threads, rows, [&](int64_t i) {
    rotate(q + i * heads * 2 * half, q_out + i * heads * 2 * half, heads, half, cos + i * half, sin + i * half);
    rotate(k + i * key_heads * 2 * half, k_out + i * key_heads * 2 * half, key_heads, half, cos + i * half,
           sin + i * half);
  });
}

// out = x + y, `count` numbers each.
PX_API void px_add(const uint16_t* x, const uint16_t* y, uint16_t* out, int64_t count, int threads) {
  constexpr int64_t kRun = 1 << 14;
  const auto add = px::kernels().add;
  px::parallel(threads, (count + kRun - 1) / kRun, [&](int64_t task) {
    const int64_t start = task * kRun, left = count - start;
    add(x + start, y + start, out + start, left < kRun ? left : kRun);
  });
}
