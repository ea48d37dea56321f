// Attention. Keys are transposed so that they lie across a register: scores and weighted values are then products of
// small tiles, and no sum is taken across a register. What an instruction set stores and multiplies is included before.
#pragma once

#include "attend_few.h"

namespace px {
namespace {

// One task: its queries, head by head, against one chunk of keys after another. Keys lie in memory for all heads of a
// slot together and are read in that order, a panel at a time, the next panel being fetched meanwhile.
template <class Stored>
class Engine {
 public:
  Engine(const AttendCall& call, const Sequence& s, const AttendTask& t, Arena& arena)
      : call_(call), s_(s), t_(t), of_head_(static_cast<int>(t.rows * (call.heads / call.key_heads))),
        queries_(of_head_ * t.key_heads), units_((call.dim * kBytes / 4 + kLanes - 1) / kLanes * kLanes * kUnitsOfWord),
        channels_((call.dim + kColumns - 1) / kColumns * kColumns), few_(of_head_ <= kFewRows),
        value_panel_(t.key_heads > 1 ? kValuePanel : kChunk) {
    query_ = arena.take<Query>(queries_);
    visible_ = arena.take<int>(of_head_);
    q_ = arena.take<uint32_t>(static_cast<int64_t>(queries_) * kParts * units_);
    keys_ = arena.take<uint32_t>(kPanel * units_);
    values_ = arena.take<uint32_t>(value_panel_ / kPerUnit * channels_);
    scores_ = arena.take<uint32_t>(static_cast<int64_t>(queries_) * kParts * kChunk);
    weights_ = arena.take<uint32_t>(static_cast<int64_t>(queries_) * kParts * kChunk / kPerUnit);
    sums_ = arena.take<uint32_t>(static_cast<int64_t>(queries_) * kParts * channels_);
    scales_ = arena.take<Scales>(Stored::kScaled ? t.key_heads : 1);
  }

  void read_queries() {
    const int group = call_.heads / call_.key_heads;
    for (int i = 0; i < queries_; i++) {
      Query& q = query_[i];
      q.scores = scores_ + static_cast<int64_t>(i) * kParts * kChunk;
      q.weights = weights_ + static_cast<int64_t>(i) * kParts * kChunk / kPerUnit;
      q.sums = sums_ + static_cast<int64_t>(i) * kParts * channels_;
      const int64_t row = s_.first_row + t_.first_row + i % of_head_ / group;
      std::memset(q_ + static_cast<int64_t>(i) * kParts * units_, 0, kParts * units_ * 4);
      const int64_t head = (t_.first_head + i / of_head_) * group + i % group;
      Stored::read_query(call_, row * call_.q_stride + head * call_.dim, q_ + static_cast<int64_t>(i) * kParts * units_, units_, q);
    }
  }

  void chunk(int64_t begin, const Running& out) {
    const int group = call_.heads / call_.key_heads;
    for (int row = 0, i = 0; row < t_.rows; row++)
      for (int g = 0; g < group; g++) visible_[i++] = visible_keys(call_, s_, t_, row, begin);
    const int most = visible_[of_head_ - 1];
    find_rows(call_.keys, call_.key_stride, begin, most, kChunk, key_rows_);
    find_rows(call_.values, call_.value_stride, begin, most, kChunk, value_rows_);
    const bool last = begin + kChunk >= (t_.first_chunk + t_.chunks) * kChunk;
    const int64_t ahead = last ? 0 : s_.keys - begin - kChunk;
    find_rows(call_.keys, call_.key_stride, begin + kChunk, ahead < kPanel ? static_cast<int>(ahead) : kPanel, kPanel, next_rows_);
    if (Stored::kScaled) read_scales(begin, most);
    for (int j = 0; j < most; j += kPanel) score_panel(j, most);
    for (int head = 0; head < t_.key_heads; head++)
      for (int i = 0; i < of_head_; i++) weigh(head, i, out);
    for (int j = 0; j < most; j += value_panel_) value_panel(j, most);
    for (int i = 0; i < queries_; i++) {
      float* to = out.values + static_cast<int64_t>(i) * call_.dim;
      if (visible_[i % of_head_] > 0) Stored::finish(query_[i], channels_, call_.dim, to);
      else std::memset(to, 0, call_.dim * sizeof(float));
    }
  }

 private:
  static constexpr int kParts = Stored::kParts, kPerUnit = Stored::kPerUnit, kBytes = Stored::kBytes;
  static constexpr int kUnitsOfWord = Stored::kUnitsOfWord;
  static constexpr int kBlock = kSums / 2 / kParts;  // queries of a tile of scores
  static constexpr int kValuePanel = 64;             // values of several heads that are worked on together

  int last_of_block(int i) const {
    const int end = i / kBlock * kBlock + kBlock;
    return (end < of_head_ ? end : of_head_) - 1;
  }

  // Rows of `count` keys from `begin` on, of the task's first head; those past the last are empty.
  void find_rows(const void* base, int64_t stride, int64_t begin, int count, int room, const char** rows) const {
    const char* first = static_cast<const char*>(base) + static_cast<int64_t>(t_.first_head) * call_.dim * kBytes;
    stride *= kBytes;
    for (int i = 0; i < count; i++) rows[i] = first + s_.slot(begin + i) * stride;
    for (int i = count < 0 ? 0 : count; i < room; i++) rows[i] = nullptr;
  }

  // Fetches the next rows of keys or values, or where there are none the first ones of what comes after them.
  Fetcher fetcher_of(const char* const* rows, int next, int most, int panel, const char* const* after) const {
    if (next >= most) rows = after, next = 0, most = kPanel;
    int count = 0;
    while (count < panel && next + count < most && rows[next + count]) count++;
    return {rows + next, count, t_.key_heads * call_.dim * kBytes};
  }

  void of_head(const char* const* rows, int head, int panel, const char** to) const {
    const int64_t offset = static_cast<int64_t>(head) * call_.dim * kBytes;
    for (int i = 0; i < panel; i++) to[i] = rows[i] ? rows[i] + offset : nothing;
  }

  void score_panel(int j, int most) {
    const char* rows[kPanel];
    Fetcher fetcher = fetcher_of(key_rows_, j + kPanel, most, kPanel, value_rows_);
    for (int head = 0; head < t_.key_heads; head++) {
      of_head(key_rows_ + j, head, kPanel, rows);
      const int first = head * of_head_;
      uint32_t* scores = scores_ + static_cast<int64_t>(first) * kParts * kChunk + j;
      const uint32_t* q = q_ + static_cast<int64_t>(first) * kParts * units_;
      if (few_) {
        few_scores(rows, fetcher, q, scores);
        continue;
      }
      pack_keys(rows, fetcher);
      for (int i = 0; i < of_head_; i += kBlock) {
        if (visible_[last_of_block(i)] <= j) continue;
        const int block = (of_head_ - i < kBlock ? of_head_ - i : kBlock) * kParts;
        multiply<typename Stored::ScoreDot, kPanel / kLanes, false>(
            block, {q + static_cast<int64_t>(i) * kParts * units_, units_, keys_, kPanel,
                    scores + static_cast<int64_t>(i) * kParts * kChunk, kChunk, units_});
      }
    }
  }

  void pack_keys(const char* const* rows, Fetcher& fetcher) {
    const int words = call_.dim * kBytes / 4;
    for (int word = 0; word < words; word += kLanes)
      for (int half = 0; half < kPanel; half += kLanes) {
        Units x[kLanes];
        transpose<LoadUnits>(rows + half, word, words - word, x);
        for (int i = 0; i < kLanes; i++)
          for (int part = 0; part < kUnitsOfWord; part++)
            store_units(keys_ + ((word + i) * kUnitsOfWord + part) * kPanel + half, Stored::key(x[i], part));
        fetcher.fetch<kLanes * kLanes * 4 / 64>();
      }
  }

  FewSizes sizes() const { return {call_.dim, units_, channels_}; }

  void few_scores(const char* const* rows, Fetcher& fetcher, const uint32_t* q, uint32_t* scores) const {
    static_assert(kFewRows == 4, "one case for each number of queries");
    switch (of_head_) {
      case 1: return px::few_scores<Stored, 1>(rows, fetcher, q, sizes(), scores);
      case 2: return px::few_scores<Stored, 2>(rows, fetcher, q, sizes(), scores);
      case 3: return px::few_scores<Stored, 3>(rows, fetcher, q, sizes(), scores);
      case 4: return px::few_scores<Stored, 4>(rows, fetcher, q, sizes(), scores);
    }
  }

  void value_panel(int j, int most) {
    const char* rows[kChunk];
    Fetcher fetcher = fetcher_of(value_rows_, j + value_panel_, most, value_panel_, next_rows_);
    for (int head = 0; head < t_.key_heads; head++) {
      of_head(value_rows_ + j, head, value_panel_, rows);
      const int first = head * of_head_;
      const uint32_t* weights = weights_ + (static_cast<int64_t>(first) * kParts * kChunk + j) / kPerUnit;
      uint32_t* sums = sums_ + static_cast<int64_t>(first) * kParts * channels_;
      if (few_) {
        const int seen = most - j < value_panel_ ? most - j : value_panel_;
        few_values(rows, fetcher, weights, sums, (seen + kPerUnit - 1) / kPerUnit, j > 0);
        continue;
      }
      pack_values(rows, fetcher);
      for (int i = 0; i < of_head_; i += kBlock) {
        const int seen = visible_[last_of_block(i)] - j;
        if (seen <= 0) continue;
        const int block = (of_head_ - i < kBlock ? of_head_ - i : kBlock) * kParts;
        const int depth = ((seen < value_panel_ ? seen : value_panel_) + kPerUnit - 1) / kPerUnit;
        for (int d = 0; d < channels_; d += kColumns) {
          const Product p{weights + static_cast<int64_t>(i) * kParts * kChunk / kPerUnit, kChunk / kPerUnit,
                          values_ + d, channels_, sums + static_cast<int64_t>(i) * kParts * channels_ + d, channels_, depth};
          if (j > 0) multiply<typename Stored::ValueDot, kTileColumns, true>(block, p);
          else multiply<typename Stored::ValueDot, kTileColumns, false>(block, p);
        }
      }
    }
  }

  void pack_values(const char* const* rows, Fetcher& fetcher) {
    for (int i = 0; i < value_panel_; i += kPerUnit) {
      for (int d = 0; d < channels_; d += kColumns) {
        Units x[kTileColumns];
        Stored::unpack(rows + i, d, call_.dim - d, x);
        for (int k = 0; k < kTileColumns; k++) store_units(values_ + i / kPerUnit * channels_ + d + kLanes * k, x[k]);
      }
      for (int d = 0; d < call_.dim; d += 64) fetcher.fetch<kPerUnit * kBytes>();
    }
  }

  void few_values(const char* const* rows, Fetcher& fetcher, const uint32_t* weights, uint32_t* sums, int depth, bool more) {
    if (call_.dim % kColumns) few_values<false>(rows, fetcher, weights, sums, depth, more);
    else few_values<true>(rows, fetcher, weights, sums, depth, more);
  }

  template <bool Whole>
  void few_values(const char* const* rows, Fetcher& fetcher, const uint32_t* weights, uint32_t* sums, int depth, bool more) {
    for (int r = 0; r < of_head_ * kParts; r += 4) {
      const int count = of_head_ * kParts - r;
      const uint32_t* a = weights + static_cast<int64_t>(r) * kChunk / kPerUnit;
      uint32_t* to = sums + static_cast<int64_t>(r) * channels_;
      switch (count < 4 ? count : 4) {
        case 1: px::few_values<Stored, 1, Whole>(rows, fetcher, a, sizes(), depth, more, to); break;
        case 2: px::few_values<Stored, 2, Whole>(rows, fetcher, a, sizes(), depth, more, to); break;
        case 3: px::few_values<Stored, 3, Whole>(rows, fetcher, a, sizes(), depth, more, to); break;
        case 4: px::few_values<Stored, 4, Whole>(rows, fetcher, a, sizes(), depth, more, to); break;
      }
    }
  }

  void read_scales(int64_t begin, int count) {
    for (int j = 0; j < kChunk; j++) {
      const int64_t at = j < count ? s_.slot(begin + j) * call_.key_heads + t_.first_head : 0;
      for (int head = 0; head < t_.key_heads; head++) {
        scales_[head].keys[j] = j < count ? call_.key_scales[at + head] : 0.0f;
        scales_[head].values[j] = j < count ? call_.value_scales[at + head] : 0.0f;
      }
    }
    for (int head = 0; head < t_.key_heads; head++) Stored::read_scales(scales_[head]);
  }

  void weigh(int head, int i, const Running& out) {
    Query& q = query_[head * of_head_ + i];
    const Scales& scales = scales_[head];
    const int visible = visible_[i], padded = (visible_[last_of_block(i)] + kLanes - 1) / kLanes * kLanes;
    const Floats nothing_seen = splat(-INFINITY);
    float* scores = reinterpret_cast<float*>(q.scores);
    Floats largest = nothing_seen;
    for (int j = 0; j < visible; j += kLanes) {
      const Floats x = only_first(visible - j, Stored::score(q, scales, j), nothing_seen);
      if (Stored::kScaled || j + kLanes > visible) store(scores + j, x);
      largest = larger(largest, x);
    }
    const float most = largest_of(largest);
    const Floats top = splat(most), factor = splat(q.factor);
    Stored::set_unit(q, scales, visible);
    Floats sum = splat(0.0f);
    int j = 0;
    for (; j < visible; j += kLanes) {
      const Floats p = exp2_of((load(scores + j) - top) * factor);
      sum = sum + p;
      Stored::put_weights(q, scales, j, p);
    }
    for (; j < padded; j += kLanes) Stored::put_weights(q, scales, j, splat(0.0f));
    out.largest[head * of_head_ + i] = most * q.factor;
    out.sum[head * of_head_ + i] = sum_of(sum);
  }

  const char *key_rows_[kChunk], *value_rows_[kChunk], *next_rows_[kPanel];
  const AttendCall& call_;
  const Sequence& s_;
  const AttendTask& t_;
  const int of_head_, queries_, units_, channels_;
  const bool few_;
  const int value_panel_;
  Query* query_;
  int* visible_;
  uint32_t *q_, *keys_, *values_, *scores_, *weights_, *sums_;
  Scales* scales_;
};

void attend(const AttendCall& call, const Sequence& s, const AttendTask& t) {
  switch (call.stored) {
    case Type::F32: return attend_task<Engine<StoredF32>>(call, s, t);
    case Type::BF16: return attend_task<Engine<StoredBF16>>(call, s, t);
    case Type::I8: return attend_task<Engine<StoredI8>>(call, s, t);
  }
}

}  // namespace
}  // namespace px
