// The linear layer on bfloat16 weights as they lie in memory: what the driver (dense.cpp) and the kernel tell one another.
//
// Activations are packed once per call: panels of 48 rows, in a panel 16 bits of two columns of every row side by side.
// A register then holds two columns of 16 rows, and weights, which are read row by row as they are, meet it one pair of
// columns at a time in all lanes. So weights need no copy in another order, and no sum is taken across a register.
// Up to 8 rows it is the other way round: weights are turned in registers, and a pair of a row meets 16 of their rows.
// Either way a result is the sum of its pairs in their order, and then of the bias: a row is the same alone and among
// others.
#pragma once

#include <cstdint>

namespace px {

constexpr int kDenseLanes = 16;                // rows of activations in a register
constexpr int kDensePanel = 3 * kDenseLanes;   // rows of activations of a panel
constexpr int kDenseColumns = 8;               // rows of weights of a tile
constexpr int kDenseFew = 8;                   // rows of activations up to which weights are turned

struct DenseWeight {
  const uint16_t* weight;  // (rows, width), contiguous
  const uint16_t* bias;    // (rows), or null
  int64_t rows;            // N
  uint16_t* out;           // (M, N)
};

// Rows of x of one panel: (width / 2, 16 * registers) pairs, those past the last row being zero.
struct DensePanel {
  const uint32_t* pairs;
  int64_t rows;   // up to kDensePanel
  int64_t first;  // row of x, and of the result
  int64_t units;  // width / 2
};

// Pack `rows` rows of `units` pairs each, `stride` numbers apart.
void dense_pack_avx512(const uint16_t* x, int64_t stride, int64_t rows, int64_t units, uint32_t* to);

// Rows `begin` ... `end` - 1 of the weight against a panel; with `up`, silu(x weight^T) * (x up^T) instead.
void dense_strip_avx512(const DensePanel& panel, const DenseWeight& weight, const DenseWeight* up, int64_t begin,
                        int64_t end);

// The same for up to kDenseFew rows of x, which lie `stride` numbers apart; `begin` is a multiple of 16.
struct DenseFew {
  const uint16_t* x;
  int64_t stride;
  int64_t rows;
  int64_t units;
};

void dense_few_avx512(const DenseFew& few, const DenseWeight& weight, const DenseWeight* up, int64_t begin, int64_t end);

}  // namespace px
