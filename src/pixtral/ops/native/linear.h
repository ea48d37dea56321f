// The quantized linear layer: what the driver (linear.cpp) and the code for each instruction set tell one another.
//
// Activations are brought to 8 bits and laid out as they are read: in blocks of some columns, a block in tiles of a few
// rows, a tile in quads of columns: 4 bytes of row 0, 4 bytes of row 1, ... Weights come in tiles of 16 rows (quantized_weight.py).
// A strip is some tiles of weights against all rows of activations; one thread does a strip from start to end.
#pragma once

#include <cstdint>

#include "numbers.h"

namespace px {

constexpr int kTile = 16;               // rows of weights side by side
constexpr int kActivationGroup = 128;   // columns of activations that share a scale
constexpr int kMostTiles = 4;           // of weights, in a strip
constexpr float kSmallest = 1e-30f;     // a group whose largest activation is below this counts as zero

// One weight of a call.
struct Weight {
  const uint8_t* codes;
  const int8_t* scales;
  const float* row_scales;
  const void* bias;  // or null
  int64_t bias_type;
  int64_t bits;
  int64_t group;
  int64_t rows;  // N
  void* out;     // (M, N)
};

// Quantized activations (M, K) in blocks of `block` columns and tiles of `tile` rows; the last ones may be smaller.
struct Activations {
  int64_t rows;
  int64_t width;
  int64_t tile;
  int64_t block;     // a multiple of kActivationGroup
  int64_t group;     // of the weights
  int flip;          // every level is xored with it: 0, or -128, which makes level + 128, an unsigned byte
  int8_t* levels;    // (blocks, tiles, columns / 4, rows, 4)
  int32_t* offsets;  // (blocks, tiles, columns / group, rows): -128 times the sum of a group
  float* scales;     // (blocks, tiles, ceil(columns / 128), rows)
};

// Where the rows of a tile begin in a block of columns, when `unit` columns share a number: of levels, offsets or scales.
static inline int64_t place_of(const Activations& x, int64_t tile, int64_t column, int64_t unit) {
  const int64_t width = x.width - column < x.block ? x.width - column : x.block;
  return column / unit * x.rows + tile * x.tile * ((width + unit - 1) / unit);
}

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

static inline int64_t rows_of_tile(const Activations& x, int64_t tile) {
  return x.rows - tile * x.tile < x.tile ? x.rows - tile * x.tile : x.tile;
}

// Where an activation group of one row goes: its level k at levels[k / 4 * height * 4 + k % 4], with `height` rows in the
// tile, and the offset of its weight group g at offsets[g * height].
struct Places {
  int8_t* levels;
  int32_t* offsets;
  float* scale;
};

static inline Places places_of(const Activations& x, int64_t tile, int64_t column, int64_t row) {
  const int64_t height = rows_of_tile(x, tile);
  const int64_t block = column / x.block * x.block;
  const int64_t inside = column - block;
  return {x.levels + place_of(x, tile, block, 1) + inside * height + 4 * row,
          x.offsets + place_of(x, tile, block, x.group) + inside / x.group * height + row,
          x.scales + place_of(x, tile, block, kActivationGroup) + inside / kActivationGroup * height + row};
}

// The scale of a group whose largest activation is `peak`, and what activations are multiplied by; 0 where all become 0.
// A NaN or an infinity makes the scale NaN, and with it the results of the row.
static inline float choose_scale(float peak, float* scale) {
  const bool finite = peak - peak == 0.0f;
  const bool used = finite && peak >= kSmallest;
  *scale = !finite ? peak - peak : used ? peak * (1.0f / 127.0f) : 0.0f;
  return used ? 127.0f / peak : 0.0f;
}

// Quantize the rows of one tile of x, whose rows lie `stride` elements apart.
using Quantize = void (*)(const void* x, Number type, int64_t stride, const Activations& to, int64_t tile);

// Tiles `first` ... `last` - 1 of the weight against all rows of x. When `up` is given, its tiles too, and the result is
// silu(x weight^T) * (x up^T), written where `weight` says. Together at most kMostTiles.
using Strip = void (*)(const Activations& x, const Weight& weight, const Weight* up, int64_t first, int64_t last,
                       Number out);

struct LinearKernels {
  int tile;         // rows of activations in the registers of a kernel, when there are many
  int block;        // columns of a panel of decoded weights
  int most_direct;  // up to so many rows, the weights are decoded in registers and not stored
  int panel_flip;   // of activations that meet a panel decoded from 4 bits
  Quantize quantize;
  Strip strip;
};

extern const LinearKernels linear_portable;
extern const LinearKernels linear_avx2;
extern const LinearKernels linear_avx512;

}  // namespace px
