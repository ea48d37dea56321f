// What a thread does with a strip of weights, the same for every instruction set; V is what differs. V lies in an
// unnamed namespace of the file that includes this, so that nothing here is shared between files.
//
// With many rows, some columns of the weights are decoded once into a panel that stays in the L1 cache, and all rows
// pass over it, a tile of them at a time. With few, weights are decoded in registers and read exactly once.
#pragma once

#include <initializer_list>
#include <utility>

#include "linear.h"

namespace px {

// One kernel's work: the rows of one tile of activations, times some columns of some tiles of weights.
struct Block {
  const uint8_t* const* codes;  // of each tile of weights
  const int8_t* const* scales;
  const int8_t* levels;
  const int32_t* offsets;
  const float* activation_scales;
  float* sums;                  // (tiles of weights, rows, 16), added to
  const uint8_t* next;          // what the weights' memory should be asked for meanwhile, for the next block
  int64_t next_step;            // bytes of it for each 8 columns
  int64_t group;                // columns that share a weight scale
  int64_t groups;               // of these, starting at an activation group
  int64_t most;                 // groups that share an activation scale
};

using Multiply = void (*)(const Block&);

// The kernels of `Count` tiles for 1, 2, ... rows.
template <class V, class Source, int Count, int... Less>
static Multiply kernel_of(int64_t rows, std::integer_sequence<int, Less...>) {
  static constexpr Multiply kernels[] = {nullptr, V::template multiply<Source, Less + 1, Count>...};
  return kernels[rows];
}

template <class V, class Source, int Count>
static Multiply kernel_of(int64_t rows) {
  return kernel_of<V, Source, Count>(rows, std::make_integer_sequence<int, V::template most_rows<Source>(Count)>());
}

// Run a block over `count` tiles, as many at once as the registers hold.
template <class V, class Source>
static void multiply(Block block, int64_t rows, int count) {
  const int most = rows <= V::template most_rows<Source>(4) ? 4 : rows <= V::template most_rows<Source>(2) ? 2 : 1;
  while (count > 0) {
    const int now = count >= 4 && most >= 4 ? 4 : count >= 2 && most >= 2 ? 2 : 1;
    (now == 4   ? kernel_of<V, Source, 4>(rows)
     : now == 2 ? kernel_of<V, Source, 2>(rows)
                : kernel_of<V, Source, 1>(rows))(block);
    block.codes += now;
    block.scales += now;
    block.sums += now * rows * kTile;
    count -= now;
  }
}

// Sums of one tile of rows -> results, for the weight's tiles `first` ... `last` - 1; with `up`, pairs of sums.
template <class V>
static void finish(const float* sums, int64_t rows, int64_t row, const Weight& weight, const Weight* up, int64_t first,
                   int64_t last, Number type) {
  const int64_t step = rows * kTile;  // from one tile's sums to the next one's
  for (int64_t tile = first; tile < last; tile++) {
    const int64_t columns = weight.rows - tile * kTile < kTile ? weight.rows - tile * kTile : kTile;
    for (int64_t i = 0; i < rows; i++) {
      const int64_t at = (row + i) * weight.rows + tile * kTile;
      if (up == nullptr) {
        V::finish(sums + (tile - first) * step + i * kTile, weight, tile, columns, type, at);
      } else {
        const float* pair = sums + 2 * (tile - first) * step + i * kTile;
        V::finish_gated(pair, pair + step, weight, *up, tile, columns, type, at);
      }
    }
  }
}

template <class V>
static void strip(const Activations& x, const Weight& weight, const Weight* up, int64_t first, int64_t last,
                  Number type) {
  constexpr int64_t kPanel = V::kPanelColumns * V::kPanelBytes;  // of a tile; so many bytes for each column
  constexpr int64_t kRows = V::kChunkRows;  // whose sums are kept at a time
  const int64_t groups = x.width / x.group;
  const bool direct = x.rows <= V::kMostDirect;

  const uint8_t* codes[kMostTiles];
  const int8_t* scales[kMostTiles];
  const Weight* of[kMostTiles];
  int count = 0;
  for (int64_t tile = first; tile < last; tile++) {
    for (const Weight* w : {&weight, up}) {
      if (w == nullptr) continue;
      codes[count] = w->codes + tile * x.width * kTile * w->bits / 8;
      scales[count] = w->scales + tile * groups * kTile;
      of[count] = w;
      count++;
    }
  }

  alignas(64) float sums[kMostTiles * kRows * kTile];
  alignas(64) uint8_t panel[kMostTiles * kPanel];
  const int64_t chunk_tiles = direct ? 1 : kRows / x.tile;
  for (int64_t chunk = 0; chunk * chunk_tiles * x.tile < x.rows; chunk++) {
    const int64_t from = chunk * chunk_tiles;
    const int64_t until = ceil_div(x.rows, x.tile) < from + chunk_tiles ? ceil_div(x.rows, x.tile) : from + chunk_tiles;
    const int64_t rows = (until * x.tile < x.rows ? until * x.tile : x.rows) - from * x.tile;
    for (int64_t i = 0; i < rows * count * kTile; i++) sums[i] = 0;

    for (int64_t column = 0; column < x.width; column += x.block) {
      const uint8_t* block_codes[kMostTiles];
      const int8_t* block_scales[kMostTiles];
      Block block;
      block.codes = block_codes;
      block.scales = block_scales;
      const int64_t columns = x.width - column < x.block ? x.width - column : x.block;
      block.group = x.group;
      block.groups = columns / x.group;
      block.most = kActivationGroup / x.group;
      for (int j = 0; j < count; j++) {
        block_scales[j] = scales[j] + column / x.group * kTile;
        block_codes[j] = codes[j] + column * kTile * of[j]->bits / 8;
        if (!direct && (of[j]->bits == 4 || !V::kBytesAreDecoded)) {
          uint8_t* to = panel + j * kPanel;
          V::decode(block_codes[j], of[j]->bits, columns, to);
          block_codes[j] = to;
        }
      }
      for (int64_t tile = from; tile < until; tile++) {
        const int64_t height = rows_of_tile(x, tile);
        block.levels = x.levels + place_of(x, tile, column, 1);
        block.offsets = x.offsets + place_of(x, tile, column, x.group);
        block.activation_scales = x.scales + place_of(x, tile, column, kActivationGroup);
        block.sums = sums + (tile - from) * x.tile * count * kTile;
        const int64_t ahead = tile - from < count ? tile - from : 0;  // the first rows fetch a tile of weights each
        block.next_step = 16 * of[ahead]->bits;
        block.next = codes[ahead] + (column + x.block) * kTile * of[ahead]->bits / 8;
        if (!direct && weight.bits == 4) {
          multiply<V, typename V::Decoded>(block, height, count);
        } else if (!direct) {
          multiply<V, typename V::DecodedBytes>(block, height, count);
        } else if (weight.bits == 4) {
          multiply<V, typename V::Nibbles>(block, height, count);
        } else {
          multiply<V, typename V::Bytes>(block, height, count);
        }
      }
    }
    for (int64_t tile = from; tile < until; tile++) {
      const int64_t height = rows_of_tile(x, tile);
      const float* done = sums + (tile - from) * x.tile * count * kTile;
      finish<V>(done, height, tile * x.tile, weight, up, first, last, type);
    }
  }
}

}  // namespace px
