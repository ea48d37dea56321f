// Small products on 32-bit units: one float, or two bfloat16 or four bytes where one instruction multiplies and adds
// them up. Every sum runs over its units in order, in one register: results do not depend on the tile that they are
// worked out in. The vectors of an instruction set are included before.
#pragma once

#include <utility>

namespace px {
namespace {

struct DotF32 {
  using Sum = Floats;
  static Sum zero() { return splat(0.0f); }
  static Sum add(Sum sum, Units a, Units b) { return fused(floats_of(a), floats_of(b), sum); }
  static Sum get(const void* from) { return load(static_cast<const float*>(from)); }
  static void put(void* to, Sum sum) { store(static_cast<float*>(to), sum); }
};

// Two bfloat16 in a unit.
struct DotBF16 : DotF32 {
  static Sum add(Sum sum, Units a, Units b) { return add_pairs(sum, a, b); }
};

// C (rows, kLanes * Columns) = A (rows, depth) x B (depth, kLanes * Columns), or that much more.
struct Product {
  const uint32_t* a;
  int64_t a_stride;
  const uint32_t* b;
  int64_t b_stride;
  uint32_t* c;
  int64_t c_stride;
  int depth;
};

template <class Dot, int Rows, int Columns, bool More>
void tile(const Product& product) {
  const Product p = product;
  typename Dot::Sum sums[Rows][Columns];
#pragma GCC unroll 12
  for (int r = 0; r < Rows; r++)
#pragma GCC unroll 4
    for (int j = 0; j < Columns; j++) sums[r][j] = More ? Dot::get(p.c + r * p.c_stride + kLanes * j) : Dot::zero();
  const uint32_t *a = p.a, *b = p.b;
  for (int k = 0; k < p.depth; k++, a++, b += p.b_stride) {
    Units columns[Columns];
#pragma GCC unroll 4
    for (int j = 0; j < Columns; j++) columns[j] = load_units(b + kLanes * j);
#pragma GCC unroll 12
    for (int r = 0; r < Rows; r++) {
      const Units x = splat_unit(a + r * p.a_stride);
#pragma GCC unroll 4
      for (int j = 0; j < Columns; j++) sums[r][j] = Dot::add(sums[r][j], x, columns[j]);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < Rows; r++)
#pragma GCC unroll 4
    for (int j = 0; j < Columns; j++) Dot::put(p.c + r * p.c_stride + kLanes * j, sums[r][j]);
}

template <class Dot, int Columns, bool More, int... Counts>
inline void tile_of(int rows, const Product& p, std::integer_sequence<int, Counts...>) {
  static constexpr void (*tiles[])(const Product&) = {tile<Dot, Counts + 1, Columns, More>...};
  tiles[rows - 1](p);
}

// Any number of rows, as many at a time as fill the registers with sums.
template <class Dot, int Columns, bool More>
inline void multiply(int rows, Product p) {
  constexpr int most = kSums / Columns;
  for (; rows > 0; rows -= most) {
    tile_of<Dot, Columns, More>(rows < most ? rows : most, p, std::make_integer_sequence<int, most>());
    p.a += most * p.a_stride;
    p.c += most * p.c_stride;
  }
}

// Units as they lie in memory.
struct LoadUnits {
  static constexpr int kBytes = 4;
  static Units load(const char* from) { return load_units(from); }
  static Units load(const char* from, int count) { return load_units(from, count); }
};

// Bfloat16 as units of one float.
struct LoadWide {
  static constexpr int kBytes = 2;
  static Units load(const char* from) { return units_of(wide(load_halves(from))); }
  static Units load(const char* from, int count) { return units_of(wide(load_halves(from, count))); }
};

alignas(64) const char nothing[1024] = {};  // a row that is not there

// kLanes units of as many rows, from rows to columns: x[unit] has that unit of every row; those from `count` on are
// zero. As much as a register holds is read of a row at once, because lines at the distance of cache rows fall into few
// sets of the first cache.
template <class Load>
inline void transpose(const char* const* rows, int64_t unit, int count, Units (&x)[kLanes]) {
  if (count >= kLanes)
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; i++) x[i] = Load::load(rows[i] + unit * Load::kBytes);
  else
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; i++) x[i] = Load::load(rows[i] + unit * Load::kBytes, count);
  turn(x);
}

}  // namespace
}  // namespace px
