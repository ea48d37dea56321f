// Packing weights: what the driver (pack.cpp) and the code for each instruction set tell one another.
#pragma once

#include <cstdint>

#include "numbers.h"

namespace px {

constexpr int kMostGroup = 128;  // the longest group

// The scale of the best fit to a group of weights, in their own unit; 0 when all count as zero.
using FitGroup = float (*)(const float* weights, int64_t group, int64_t bits);

// The multiple of `row_scale` next to `wanted` that fits best, and the codes to be read with it.
using SnapGroup = int8_t (*)(const float* weights, int64_t group, int64_t bits, float wanted, float row_scale,
                             uint8_t* codes);

struct PackKernels {
  FitGroup fit;
  SnapGroup snap;
};

extern const PackKernels pack_portable;
extern const PackKernels pack_avx2;
extern const PackKernels pack_avx512;

}  // namespace px
