// Products with bfloat16 weights as they lie in the file: a row's result does not depend on the other rows.
#pragma once

#include <cstdint>

namespace px {

constexpr int64_t kDenseTile = 32;  // outputs that one pass makes
constexpr int64_t kDenseMaxK = 768;  // columns: of wider layers PyTorch makes the product about as fast

// out (rows, n) at columns first .. first + kDenseTile = x (rows, k) * weight (n, k)^T + bias; k is even. bias may be
// null.
struct DenseArgs {
  const uint16_t* x;
  int64_t stride;  // of x, in numbers
  const uint16_t* weight;
  const uint16_t* bias;
  uint16_t* out;
  int64_t rows, n, k;
};

void dense_tile_avx512(const DenseArgs& args, int64_t first);

}  // namespace px
