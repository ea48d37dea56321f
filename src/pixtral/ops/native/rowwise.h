// Norms and rotary embeddings in bfloat16, with the roundings of the same steps in PyTorch. Included by one file for each
// instruction set; the compiler makes vectors of the loops.
#pragma once

#include "numbers.h"
#include "rowwise_kernels.h"

namespace px {

namespace {

constexpr int kRun = 16;

inline float wide(uint16_t bits) { return float_of_bits(static_cast<uint32_t>(bits) << 16); }

// Without the branch of bfloat_of_float, which would keep the loops from becoming vectors.
inline uint16_t narrow(float value) {
  const uint32_t bits = bits_of_float(value);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? bits >> 16 | 0x40 : rounded);
}

[[maybe_unused]] void norm_row(const uint16_t* x, const uint16_t* weight, uint16_t* out, int64_t width, float eps) {
  float sums[kRun] = {};
  int64_t i = 0;
  for (; i + kRun <= width; i += kRun)
    for (int j = 0; j < kRun; j++) sums[j] += wide(x[i + j]) * wide(x[i + j]);
  float sum = 0;
  for (; i < width; i++) sum += wide(x[i]) * wide(x[i]);
  for (const float part : sums) sum += part;
  const float scale = 1.0f / std::sqrt(sum / static_cast<float>(width) + eps);
  for (i = 0; i < width; i++) out[i] = narrow(wide(narrow(wide(x[i]) * scale)) * wide(weight[i]));
}

void add_run(const uint16_t* x, const uint16_t* y, uint16_t* out, int64_t count) {
  for (int64_t i = 0; i < count; i++) out[i] = narrow(wide(x[i]) + wide(y[i]));
}

// Channel c of a head turns together with channel c + half.
void rotate_row(const uint16_t* x, uint16_t* out, int64_t heads, int64_t half, const uint16_t* cos,
                const uint16_t* sin) {
  for (int64_t head = 0; head < heads; head++, x += 2 * half, out += 2 * half) {
    for (int64_t c = 0; c < half; c++) {
      const float first = wide(x[c]), second = wide(x[half + c]), turn = wide(cos[c]), rise = wide(sin[c]);
      out[c] = narrow(wide(narrow(first * turn)) - wide(narrow(second * rise)));
      out[half + c] = narrow(wide(narrow(second * turn)) + wide(narrow(first * rise)));
    }
  }
}

}  // namespace

}  // namespace px
