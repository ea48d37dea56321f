// Attention of a few query rows, a new token above all: keys and values are read once, in the order of memory, and used
// from registers. Sums run in the same order as in the tiles for many rows.
#pragma once

#include "attend_stored.h"

namespace px {
namespace {

// Fetches rows into the second cache, as they lie in memory, while others are worked on.
class Fetcher {
 public:
  // `count` rows of `bytes` each, a multiple of a line.
  Fetcher(const char* const* rows, int count, int bytes) : rows_(rows), end_(rows + count), bytes_(bytes) { next_run(); }

  template <int Lines>
  void fetch() {
    if (left_ >= 64 * Lines) {
#pragma GCC unroll 16
      for (int i = 0; i < Lines; i++) _mm_prefetch(at_ + 64 * i, _MM_HINT_T1);
      at_ += 64 * Lines;
      left_ -= 64 * Lines;
      return;
    }
    for (; left_ > 0; at_ += 64, left_ -= 64) _mm_prefetch(at_, _MM_HINT_T1);
    next_run();
  }

 private:
  // Rows that follow one another in memory are fetched as one.
  void next_run() {
    if (rows_ == end_) return;
    at_ = *rows_;
    left_ = 0;
    for (; rows_ != end_ && *rows_ == at_ + left_; rows_++) left_ += bytes_;
  }

  const char* const* rows_;
  const char* const* end_;
  const int bytes_;
  const char* at_ = nullptr;
  int left_ = 0;
};

// Sizes of the numbers of a task that the functions below need.
struct FewSizes {
  int dim;
  int units;      // of a query, and of a key when it is one
  int channels;   // of a sum
};

// Scores of `Queries` queries and kPanel keys, without a transposed copy of the keys in memory.
template <class Stored, int Queries>
void few_scores(const char* const* rows, Fetcher& fetcher, const uint32_t* q, const FewSizes& size, uint32_t* scores) {
  using Dot = typename Stored::ScoreDot;
  constexpr int Rows = Queries * Stored::kParts, kParts = Stored::kUnitsOfWord;
  const int64_t units = size.units;
  const int words = size.dim * Stored::kBytes / 4;
  for (int first = 0; first < kPanel; first += kLanes * kFewScores) {
    typename Dot::Sum sums[kFewScores][Rows];
#pragma GCC unroll 2
    for (int t = 0; t < kFewScores; t++)
#pragma GCC unroll 8
      for (int r = 0; r < Rows; r++) sums[t][r] = Dot::zero();
    for (int word = 0; word < words; word += kLanes) {
      const uint32_t* a = q + word * kParts;
#pragma GCC unroll 2
      for (int t = 0; t < kFewScores; t++) {
        Units x[kLanes];
        transpose<LoadUnits>(rows + first + kLanes * t, word, words - word, x);
        fetcher.fetch<kLanes * kLanes * 4 / 64>();
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; i++)
#pragma GCC unroll 4
          for (int part = 0; part < kParts; part++) {
            const Units key = Stored::key(x[i], part);
#pragma GCC unroll 8
            for (int r = 0; r < Rows; r++)
              sums[t][r] = Dot::add(sums[t][r], splat_unit(a + r * units + i * kParts + part), key);
          }
      }
    }
#pragma GCC unroll 2
    for (int t = 0; t < kFewScores; t++)
#pragma GCC unroll 8
      for (int r = 0; r < Rows; r++) Dot::put(scores + r * kChunk + first + kLanes * t, sums[t][r]);
  }
}

// Values of `depth` units of rows, weighted for `Rows` rows of weights; with `more`, added to the sums.
template <class Stored, int Rows, bool Whole>
void few_values(const char* const* rows, Fetcher& fetcher, const uint32_t* weights, const FewSizes& size, int depth,
                bool more, uint32_t* to) {
  using Dot = typename Stored::ValueDot;
  constexpr int stride = kChunk / Stored::kPerUnit;
  const int64_t channels = size.channels;
  for (int begin = 0; begin < depth; begin += kFewValues) {
    const int end = depth - begin < kFewValues ? depth : begin + kFewValues;
    for (int d = 0; d < channels; d += kColumns) {
      typename Dot::Sum sums[Rows][kTileColumns];
#pragma GCC unroll 4
      for (int r = 0; r < Rows; r++)
#pragma GCC unroll 4
        for (int j = 0; j < kTileColumns; j++)
          sums[r][j] = more || begin > 0 ? Dot::get(to + r * channels + d + kLanes * j) : Dot::zero();
      for (int k = begin; k < end; k++) {
        Units x[kTileColumns];
        Stored::unpack(rows + k * Stored::kPerUnit, d, Whole ? kColumns : size.dim - d, x);
        if (d % 64 == 0) fetcher.fetch<Stored::kPerUnit * Stored::kBytes>();
#pragma GCC unroll 4
        for (int r = 0; r < Rows; r++) {
          const Units a = splat_unit(weights + r * stride + k);
#pragma GCC unroll 4
          for (int j = 0; j < kTileColumns; j++) sums[r][j] = Dot::add(sums[r][j], a, x[j]);
        }
      }
#pragma GCC unroll 4
      for (int r = 0; r < Rows; r++)
#pragma GCC unroll 4
        for (int j = 0; j < kTileColumns; j++) Dot::put(to + r * channels + d + kLanes * j, sums[r][j]);
    }
  }
}

}  // namespace
}  // namespace px
