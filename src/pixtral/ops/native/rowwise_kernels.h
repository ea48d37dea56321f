// Kernels that work on one row of bfloat16 numbers at a time.
#pragma once

#include <cmath>
#include <cstdint>

namespace px {

struct RowwiseKernels {
  void (*norm)(const uint16_t* x, const uint16_t* weight, uint16_t* out, int64_t width, float eps);
  void (*rotate)(const uint16_t* x, uint16_t* out, int64_t heads, int64_t half, const uint16_t* cos,
                 const uint16_t* sin);
  void (*add)(const uint16_t* x, const uint16_t* y, uint16_t* out, int64_t count);
};

extern const RowwiseKernels rowwise_portable, rowwise_avx2, rowwise_avx512;

}  // namespace px
