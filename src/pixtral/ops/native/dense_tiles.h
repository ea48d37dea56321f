// Products of bfloat16: sums in float32, rounded once. D is what differs between CPUs that multiply pairs of bfloat16 and
// those that multiply float32: kUnit, columns in a unit; Load, how units of x are read; kBlock, units after which sums
// are put aside for the next rows of weights; kStrip and kPanels, the sizes of a task; Tile, kWide rows of weights as
// multiply() takes them, and kTiles, how many of these a panel meets one after the other. The vectors of an instruction
// set are included before.
#pragma once

#include "dense.h"
#include "numbers.h"
#include "tiles.h"

namespace px {

namespace {

constexpr int kWide = kSums / 3;            // rows of weights of a tile
constexpr int kPanelRows = 3 * kLanes;      // rows of activations of a panel

// Rows of weights of a tile, from a column on; a row past the last is read as the last.
struct Rows {
  const uint16_t* at[kWide];
  int64_t width;
  Rows(const DenseWeight& weight, int64_t begin, int64_t width, int64_t column) : width(width) {
    for (int c = 0; c < kWide; c++) {
      const int64_t row = begin + c < weight.rows ? begin + c : weight.rows - 1;
      at[c] = weight.weight + row * width + column;
    }
  }
};

float bias_of(const DenseWeight& weight, int64_t row) {
  return weight.bias && row < weight.rows ? float_of_bits(static_cast<uint32_t>(weight.bias[row]) << 16) : 0.0f;
}

constexpr int kLine = 32;               // results of a row that are written together: a line of the cache
constexpr int64_t kStreamed = 1 << 15;  // results of a row from which they are written past the caches

// The lines of a panel to where they belong.
inline void write_lines(const uint16_t (&lines)[kPanelRows][kLine], const DensePanel& panel, const DenseWeight& weight,
                        int64_t begin) {
  const int64_t left = weight.rows - begin;
  uint16_t* out = weight.out + panel.first * weight.rows + begin;
  const bool stream = weight.rows >= kStreamed && weight.rows % kLine == 0 && reinterpret_cast<uintptr_t>(out) % 64 == 0;
  for (int64_t row = 0; row < panel.rows; row++, out += weight.rows) {
    if (left < kLine) {
      for (int i = 0; i < left; i += kLanes)
        store_halves(out + i, load_halves(lines[row] + i), static_cast<int>(left - i));
      continue;
    }
    for (int i = 0; i < kLine; i += 2 * kLanes) {
      const Units part = load_units(lines[row] + i);
      if (stream) stream_units(out + i, part);
      else store_units(out + i, part);
    }
  }
  if (stream) _mm_sfence();
}

// Sums of a strip and a panel: of each kWide rows of weights those of R registers of x.
template <class D, int R>
struct StripSums {
  alignas(64) Floats of[D::kStrip / kWide][R][kWide];
};

// What lies in memory between two blocks, in registers within one.
template <int R>
struct TileSums {
  Floats of[R][kWide];
  TileSums(const Floats (&aside)[R][kWide], bool more) {
#pragma GCC unroll 3
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
      for (int c = 0; c < kWide; c++) of[r][c] = more ? aside[r][c] : splat(0.0f);
  }
  void put_aside(Floats (&aside)[R][kWide]) const {
#pragma GCC unroll 3
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
      for (int c = 0; c < kWide; c++) aside[r][c] = of[r][c];
  }
};

template <class D, int R>
void sum_up(const DensePanel* panels, int count, const DenseWeight& weight, int64_t begin, int64_t end,
            StripSums<D, R>* sums) {
  const int64_t all = panels[0].units;
  for (int64_t unit = 0; unit < all; unit += D::kBlock) {
    const int64_t units = all - unit < D::kBlock ? all - unit : D::kBlock;
    for (int64_t first = begin; first < end; first += D::kTiles * kWide) {
      const int64_t last = first + D::kTiles * kWide < end ? first + D::kTiles * kWide : end;
      typename D::Tile tiles[D::kTiles];
      for (int64_t n = first; n < last; n += kWide)
        tiles[(n - first) / kWide].read(Rows(weight, n, all * D::kUnit, unit * D::kUnit), units);
      for (int i = 0; i < count; i++)
        for (int64_t n = first; n < last; n += kWide)
          D::template multiply<R>(panels[i].columns + unit * kLanes * R, units, tiles[(n - first) / kWide],
                                  sums[i].of[(n - begin) / kWide], unit > 0);
    }
  }
  if (weight.bias == nullptr) return;
  for (int i = 0; i < count; i++)
    for (int64_t n = begin; n < end; n += kWide)
      for (int r = 0; r < R; r++)
        for (int c = 0; c < kWide; c++) {
          Floats& sum = sums[i].of[(n - begin) / kWide][r][c];
          sum = sum + splat(bias_of(weight, n + c));
        }
}

template <class D, int R>
void strip(const DensePanel* panels, int count, const DenseWeight& weight, const DenseWeight* up, int64_t begin,
           int64_t end) {
  StripSums<D, R> sums[D::kPanels], others[D::kPanels];
  alignas(64) uint16_t lines[kPanelRows][kLine];
  sum_up<D, R>(panels, count, weight, begin, end, sums);
  if (up) sum_up<D, R>(panels, count, *up, begin, end, others);
  for (int i = 0; i < count; i++)
    for (int64_t line = begin; line < end; line += kLine) {
      for (int64_t n = line; n < line + kLine && n < end; n += kWide) {
        auto& tile = sums[i].of[(n - begin) / kWide];
        for (int r = 0; r < R; r++) {
          for (int c = 0; up && c < kWide; c++)
            tile[r][c] = others[i].of[(n - begin) / kWide][r][c] * silu(tile[r][c]);
          store_turned(tile[r], lines[kLanes * r] + (n - line), kLine);
        }
      }
      write_lines(lines, panels[i], weight, line);
    }
}

// sums[r]: row r of x times kLanes rows of the weights from `begin` on.
template <int R>
inline void sum_few(const DenseFew& few, const DenseWeight& weight, int64_t begin, Floats (&sums)[R]) {
  const char* rows[kLanes];
  for (int i = 0; i < kLanes; i++) {
    const int64_t row = begin + i < weight.rows ? begin + i : weight.rows - 1;
    rows[i] = reinterpret_cast<const char*>(weight.weight + row * few.width);
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) sums[r] = splat(0.0f);
  const int64_t next = 2 * kLanes * few.width;  // bytes of these rows
  const int64_t units = few.width / 2;
  for (int64_t u = 0; u < units; u += kLanes) {
    const int64_t left = units - u < kLanes ? units - u : kLanes;
    Units turned[kLanes];
    transpose<LoadUnits>(rows, u, static_cast<int>(left), turned);
    if (u % 16 == 0)  // a line of each
      for (int i = 0; i < kLanes; i++) _mm_prefetch(rows[i] + next + 4 * u, _MM_HINT_T1);
    const uint32_t* x[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) x[r] = reinterpret_cast<const uint32_t*>(few.x + r * few.stride) + u;
    if (left == kLanes) {
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; i++)
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) sums[r] = DotBF16::add(sums[r], splat_unit(x[r] + i), turned[i]);
    } else {
      for (int i = 0; i < left; i++)
        for (int r = 0; r < R; r++) sums[r] = DotBF16::add(sums[r], splat_unit(x[r] + i), turned[i]);
    }
  }
  if (weight.bias == nullptr) return;
  float bias[kLanes];
  for (int i = 0; i < kLanes; i++) bias[i] = bias_of(weight, begin + i);
  for (int r = 0; r < R; r++) sums[r] = sums[r] + load(bias);
}

template <int R>
void few_rows(const DenseFew& few, const DenseWeight& weight, const DenseWeight* up, int64_t begin, int64_t end) {
  for (int64_t n = begin; n < end; n += kLanes) {
    Floats sums[R];
    sum_few<R>(few, weight, n, sums);
    if (up) {
      Floats others[R];
      sum_few<R>(few, *up, n, others);
      for (int r = 0; r < R; r++) sums[r] = others[r] * silu(sums[r]);
    }
    const int count = static_cast<int>(weight.rows - n < kLanes ? weight.rows - n : kLanes);
    for (int r = 0; r < R; r++) store_halves(weight.out + r * weight.rows + n, narrow(sums[r]), count);
  }
}

inline void any_few(const DenseFew& few, const DenseWeight& weight, const DenseWeight* up, int64_t begin, int64_t end) {
  static constexpr decltype(&few_rows<1>) kinds[kDenseFew] = {few_rows<1>, few_rows<2>, few_rows<3>, few_rows<4>,
                                                               few_rows<5>, few_rows<6>, few_rows<7>, few_rows<8>};
  kinds[few.rows - 1](few, weight, up, begin, end);
}

template <class D>
void pack(const uint16_t* x, int64_t stride, int64_t rows, int64_t units, uint32_t* to) {
  const int64_t lanes = (rows + kLanes - 1) / kLanes * kLanes;
  for (int64_t u = 0; u < units; u += kLanes) {
    const int64_t left = units - u < kLanes ? units - u : kLanes;
    for (int64_t first = 0; first < lanes; first += kLanes) {
      const char* from[kLanes];
      for (int i = 0; i < kLanes; i++)
        from[i] = first + i < rows ? reinterpret_cast<const char*>(x + (first + i) * stride + D::kUnit * u) : nothing;
      Units turned[kLanes];
      transpose<typename D::Load>(from, 0, static_cast<int>(left), turned);
      for (int i = 0; i < left; i++) store_units(to + (u + i) * lanes + first, turned[i]);
    }
  }
}

template <class D>
void multiply_panels(const DensePanel* panels, int count, const DenseWeight& weight, const DenseWeight* up,
                     int64_t begin, int64_t end) {
  static_assert(D::kPanels <= kDenseMostPanels, "the driver hands out no more");
  const int64_t rows = panels[0].rows;
  if (rows > 2 * kLanes) strip<D, 3>(panels, count, weight, up, begin, end);
  else if (rows > kLanes) strip<D, 2>(panels, count, weight, up, begin, end);
  else strip<D, 1>(panels, count, weight, up, begin, end);
}

template <class D>
constexpr DenseKernels dense_kernels() {
  return {D::kUnit, kPanelRows, D::kStrip, D::kPanels, pack<D>, multiply_panels<D>, any_few};
}

}  // namespace
}  // namespace px
