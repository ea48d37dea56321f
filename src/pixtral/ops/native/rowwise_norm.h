// The norm by hand, where the compiler did not find the vectors. Those of an instruction set are included before.
#pragma once

#include "rowwise.h"

namespace px {
namespace {

inline Floats read_wide(const uint16_t* from, int64_t left) {
  return wide(left >= kLanes ? load_halves(from) : load_halves(from, static_cast<int>(left)));
}

void norm_vectors(const uint16_t* x, const uint16_t* weight, uint16_t* out, int64_t width, float eps) {
  Floats sums[4] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
  for (int64_t i = 0; i < width; i += 4 * kLanes)
    for (int j = 0; j < 4; j++) {
      const int64_t left = width - i - kLanes * j;
      if (left <= 0) break;
      const Floats v = read_wide(x + i + kLanes * j, left);
      sums[j] = fused(v, v, sums[j]);
    }
  const float sum = sum_of((sums[0] + sums[1]) + (sums[2] + sums[3]));
  const Floats scale = splat(1.0f / std::sqrt(sum / static_cast<float>(width) + eps));
  for (int64_t i = 0; i < width; i += kLanes) {
    const int64_t left = width - i;
    const Floats y = wide(narrow(read_wide(x + i, left) * scale)) * read_wide(weight + i, left);
    if (left >= kLanes) store_halves(out + i, narrow(y));
    else store_halves(out + i, narrow(y), static_cast<int>(left));
  }
}

}  // namespace
}  // namespace px
