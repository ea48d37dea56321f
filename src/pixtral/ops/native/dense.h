// The linear layer on bfloat16 weights as they lie in memory: what the driver (dense.cpp) and the kernel tell one another.
//
// Activations are packed once per call: panels of three registers of rows, in a panel units of 32 bits of every row side
// by side. A unit is two columns where the CPU multiplies pairs of bfloat16, else one column as float32. A register then
// holds a unit of 8 or 16 rows, and weights, which are read row by row as they are, meet it one unit at a time in all
// lanes. So weights need no copy in another order, and no sum is taken across a register. Up to 8 rows it is the other
// way round: weights are turned in registers, and a unit of a row meets as many of their rows. Either way a result is
// the sum of its columns in their order, and then of the bias: a row is the same alone and among others.
#pragma once

#include <cstdint>

namespace px {

constexpr int kDenseMostPanels = 8;  // of a task
constexpr int kDenseFew = 8;         // rows of activations up to which weights are turned

struct DenseWeight {
  const uint16_t* weight;  // (rows, width), contiguous
  const uint16_t* bias;    // (rows), or null
  int64_t rows;            // N
  uint16_t* out;           // (M, N)
};

// Rows of x of one panel: (units, lanes * registers), those past the last row being zero.
struct DensePanel {
  const uint32_t* columns;
  int64_t rows;   // up to DenseKernels::rows
  int64_t first;  // row of x, and of the result
  int64_t units;  // of a row
};

// Up to kDenseFew rows of x, `stride` numbers apart.
struct DenseFew {
  const uint16_t* x;
  int64_t stride;
  int64_t rows;
  int64_t width;  // even
};

struct DenseKernels {
  int unit;    // columns of x in a panel's 32 bits
  int rows;    // of x in a panel
  int strip;   // rows of weights of a task
  int panels;  // panels of a task

  // Pack `rows` rows of `units` units each, `stride` numbers apart.
  void (*pack)(const uint16_t* x, int64_t stride, int64_t rows, int64_t units, uint32_t* to);

  // Rows `begin` ... `end` - 1 of the weight, at most `strip`, against `count` panels of one size; with `up`,
  // silu(x weight^T) * (x up^T) instead.
  void (*multiply)(const DensePanel* panels, int count, const DenseWeight& weight, const DenseWeight* up, int64_t begin,
                   int64_t end);

  // The same against few rows; `begin` is a multiple of 16.
  void (*few)(const DenseFew& few, const DenseWeight& weight, const DenseWeight* up, int64_t begin, int64_t end);
};

extern const DenseKernels dense_avx2, dense_avx512, dense_avx512_bf16;

}  // namespace px
