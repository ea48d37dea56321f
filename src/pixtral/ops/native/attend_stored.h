// What differs between caches of float32, bfloat16 and bytes, for attention: the parts that all instruction sets share.
// The vectors of one are included before.
#pragma once

#include <algorithm>
#include <cfloat>

#include "attend_store.h"
#include "tiles.h"

namespace px {
namespace {

constexpr int kPanel = 2 * kLanes;                // keys of one tile of scores
constexpr int kFewRows = 4;                       // rows that are not worth transposing keys in memory for
constexpr int kColumns = kTileColumns * kLanes;   // channels of one tile of values
// Where a tile's channels are less than a line, few units of values at a time: the first cache, in few of whose sets
// their rows meet, then still has their lines for the next tile.
constexpr int kFewValues = 2 * kColumns >= 64 ? kChunk : 8;
// Registers of keys whose scores are summed side by side: a few sums alone wait for one another.
constexpr int kFewScores = kLanes == 8 ? 2 : 1;
constexpr float kLog2E = 1.4426950408889634f;

// What belongs to one query while a chunk is worked out.
struct Query {
  uint32_t* scores;     // kParts * kChunk
  uint32_t* weights;    // kParts * kChunk / kPerUnit
  uint32_t* sums;       // kParts * channels
  float factor;         // of scores, to base 2
  int32_t offset;       // I8, AVX-512: what the keys' offset of 128 adds to a score
  float unit, per_unit;  // I8: of the 16-bit weights, and 1 / unit
};

// I8: scales of a chunk's keys and values, and of each value the largest scale up to it.
struct Scales {
  float keys[kChunk], values[kChunk], largest[kChunk];
};

// Of scores that are integers up to `most` for the largest of a query. Not 0, by which a masked score must not be
// multiplied.
inline float factor_of_scores(const AttendCall& call, float largest, float most) {
  return std::max(largest / most * call.scale * kLog2E, FLT_MIN);  // in this order a NaN stays one
}

// The unit of a query's weights, integers up to `most`, follows from the keys that it sees and from no others.
inline void choose_unit(Query& q, const Scales& scales, int visible, float most) {
  const float largest = visible > 0 ? scales.largest[visible - 1] : 0.0f;
  q.unit = largest < 1e-30f ? 1.0f : largest / most;  // a NaN stays one
  q.per_unit = 1.0f / q.unit;
}

// Everything is a float32 in a unit of its own.
struct Singles {
  static constexpr int kParts = 1, kUnitsOfWord = 1, kPerUnit = 1;
  static constexpr bool kScaled = false;
  using ScoreDot = DotF32;
  using ValueDot = DotF32;

  static void read_query(const AttendCall& call, int64_t at, uint32_t* to, int, Query& q) {
    read_row(call.type, call.q, at, call.dim, reinterpret_cast<float*>(to));
    q.factor = call.scale * kLog2E;
  }

  // Raw scores of kLanes keys; the factor comes later.
  static Floats score(const Query& q, const Scales&, int j) { return load(reinterpret_cast<const float*>(q.scores + j)); }

  static void read_scales(Scales&) {}
  static void set_unit(Query&, const Scales&, int) {}

  static void put_weights(const Query& q, const Scales&, int j, Floats p) {
    store(reinterpret_cast<float*>(q.weights + j), p);
  }

  static void finish(const Query& q, int64_t, int dim, float* to) { std::memcpy(to, q.sums, dim * sizeof(float)); }
};

struct StoredF32 : Singles {
  static constexpr int kBytes = 4;

  static Units key(Units x, int) { return x; }

  // Up to kColumns channels from `channel` on, of kPerUnit rows, as units; a row has `left` channels from there.
  static void unpack(const char* const* rows, int64_t channel, int left, Units (&x)[kTileColumns]) {
#pragma GCC unroll 4
    for (int i = 0; i < kTileColumns; i++)
      x[i] = load_units(rows[0] + (channel + kLanes * i) * 4, left - kLanes * i);
  }
};

// Two channels in a word; each becomes a float32 as soon as it is read.
struct WideBF16 : Singles {
  static constexpr int kBytes = 2, kUnitsOfWord = 2;

  static Units key(Units x, int part) { return units_of(part ? upper_half(x) : lower_half(x)); }

  // Leaves the even channels of each 2 * kLanes in one register and the odd ones in the next.
  static void unpack(const char* const* rows, int64_t channel, int left, Units (&x)[kTileColumns]) {
#pragma GCC unroll 2
    for (int i = 0; i < kTileColumns / 2; i++) {
      const Units y = load_units(rows[0] + 2 * channel + 4 * kLanes * i, left / 2 - kLanes * i);
      x[2 * i] = key(y, 0);
      x[2 * i + 1] = key(y, 1);
    }
  }

  static void finish(const Query& q, int64_t, int dim, float* to) {
    const float* sums = reinterpret_cast<const float*>(q.sums);
    for (int d = 0; d < dim; d += 2 * kLanes) {
      Floats first, second;
      interleave(load(sums + d), load(sums + d + kLanes), &first, &second);
      store(to + d, first);
      if (dim - d > kLanes) store(to + d + kLanes, second);
    }
  }
};

}  // namespace
}  // namespace px
