// Parts of the quantized linear layer in plain C++, for the instruction sets that have no code of their own for them.
// Loops run over 16 or 128 numbers, so that the compiler makes vectors of them, with the flags of the file that includes
// this; everything is static, so that no file gets the code of another.
#pragma once

#include "linear.h"

namespace px {

// a * b + c, rounded once (up to a tie in the 29 bits that double has more).
static inline float multiply_add(float a, float b, float c) {
  return static_cast<float>(static_cast<double>(a) * static_cast<double>(b) + static_cast<double>(c));
}

// exp(x) to about one unit in the last place: 2^n times a polynomial on +-log(2)/2.
static inline float exp_of(float x) {
  x = x < -104.0f ? -104.0f : x > 89.0f ? 89.0f : x;  // past these it is 0 and infinity
  const float n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;  // to a whole number
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + (r + 1.0f);
  const auto whole = static_cast<int32_t>(n);
  const int32_t half = whole >> 1;  // in two steps, since 2^n itself may be out of range
  return p * float_of_bits(static_cast<uint32_t>(half + 127) << 23) *
         float_of_bits(static_cast<uint32_t>(whole - half + 127) << 23);
}

// Sums of 16 weights' rows, scaled, with the bias added.
static inline void scale_sums(const float* sums, const Weight& weight, int64_t tile, int64_t columns, float* out) {
  const float* scales = weight.row_scales + tile * kTile;
  if (weight.bias == nullptr) {
    for (int64_t i = 0; i < kTile; i++) out[i] = sums[i] * scales[i];
    return;
  }
  const auto type = static_cast<Number>(weight.bias_type);
  float bias[kTile] = {};
  for (int64_t i = 0; i < columns; i++) bias[i] = read_number(weight.bias, type, tile * kTile + i);
  for (int64_t i = 0; i < kTile; i++) out[i] = multiply_add(sums[i], scales[i], bias[i]);
}

static inline void write_row(const float* row, const Weight& weight, int64_t columns, Number type, int64_t at) {
  for (int64_t i = 0; i < columns; i++) write_number(weight.out, type, at + i, row[i]);
}

static inline void finish_plain(const float* sums, const Weight& weight, int64_t tile, int64_t columns, Number type,
                                int64_t at) {
  float row[kTile];
  scale_sums(sums, weight, tile, columns, row);
  write_row(row, weight, columns, type, at);
}

static inline void finish_gated_plain(const float* gate_sums, const float* up_sums, const Weight& gate,
                                      const Weight& up, int64_t tile, int64_t columns, Number type, int64_t at) {
  float g[kTile], u[kTile];
  scale_sums(gate_sums, gate, tile, columns, g);
  scale_sums(up_sums, up, tile, columns, u);
  for (int64_t i = 0; i < kTile; i++) g[i] = g[i] / (1.0f + exp_of(-g[i])) * u[i];
  write_row(g, gate, columns, type, at);
}

static inline void quantize_plain(const void* x, Number type, int64_t stride, const Activations& to, int64_t tile) {
  const int64_t height = rows_of_tile(to, tile);
  for (int64_t i = 0; i < height; i++) {
    const int64_t start = (tile * to.tile + i) * stride;
    for (int64_t column = 0; column < to.width; column += kActivationGroup) {
      const int64_t left = to.width - column;
      const int64_t count = left < kActivationGroup ? left : kActivationGroup;
      float values[kActivationGroup];
      for (int64_t k = 0; k < count; k++) values[k] = read_number(x, type, start + column + k);
      uint32_t most = 0;  // as bits, so that NaN counts as larger than infinity
      for (int64_t k = 0; k < count; k++) {
        const uint32_t bits = bits_of_float(values[k]) & 0x7fffffff;
        most = bits > most ? bits : most;
      }
      const Places places = places_of(to, tile, column, i);
      const float inverse = choose_scale(float_of_bits(most), places.scale);
      int32_t levels[kActivationGroup];
      for (int64_t k = 0; k < count; k++) {
        const float level = (values[k] * inverse + 12582912.0f) - 12582912.0f;
        levels[k] = inverse > 0.0f ? static_cast<int32_t>(level) : 0;
      }
      for (int64_t k = 0; k < count; k++)
        places.levels[k / 4 * height * 4 + k % 4] = static_cast<int8_t>(levels[k] ^ to.flip);
      for (int64_t g = 0; g < count / to.group; g++) {
        int32_t sum = 0;
        for (int64_t k = 0; k < to.group; k++) sum += levels[g * to.group + k];
        places.offsets[g * height] = -128 * sum;
      }
    }
  }
}

}  // namespace px
