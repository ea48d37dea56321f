// One task of attention for whichever instruction set includes this file: walks over the chunks of keys, keeps the
// running softmax of every row, writes the result. Everything here has internal linkage, since each including file is
// compiled for another CPU.
#pragma once

#include <cmath>
#include <cstdlib>
#include <cstring>

#include "attend.h"

namespace px {
namespace {

inline float to_float(uint16_t bf16) {
  const uint32_t bits = static_cast<uint32_t>(bf16) << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

inline uint16_t to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (x != x) return 0x7fc0;
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// 2^x for x <= 0, to 1e-7; exactly 1 at 0 and 0 from -126 on.
inline float exp2_of(float x) {
  const float whole = std::floor(x < -126.0f ? -126.0f : x);
  const float f = x < -126.0f ? 0.0f : x - whole;
  const float p =
      1.0f +
      f * (6.931513118e-01f +
           f * (2.401644499e-01f + f * (5.579991411e-02f + f * (9.017028957e-03f + f * 1.867130703e-03f))));
  const int32_t bits = x <= -126.0f ? 0 : (static_cast<int32_t>(whole) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, 4);
  return p * power;
}

// Memory that a thread keeps between tasks, aligned to cache lines.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(memory_); }

  void reserve(size_t bytes) {
    bytes = (bytes + 4095) / 4096 * 4096;
    if (bytes <= size_) return;
    std::free(memory_);
    memory_ = static_cast<char*>(std::aligned_alloc(64, bytes));
    size_ = bytes;
  }

  char* data() { return memory_; }

 private:
  char* memory_ = nullptr;
  size_t size_ = 0;
};

// Hands out parts of a scratch; with no memory it only counts.
class Arena {
 public:
  explicit Arena(char* memory) : memory_(memory) {}

  template <class T>
  T* take(int64_t count) {
    char* part = memory_ ? memory_ + used_ : nullptr;
    used_ += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return reinterpret_cast<T*>(part);
  }

  size_t used() const { return used_; }

 private:
  char* memory_;
  size_t used_ = 0;
};

// The softmax so far of some rows: largest score (base 2), sum of weights, weighted sum of values.
struct Running {
  float* largest;
  float* sum;
  float* values;  // (rows, dim)
};

inline Running take_running(Arena& arena, int64_t rows, int dim) {
  Running run;
  run.largest = arena.take<float>(rows);
  run.sum = arena.take<float>(rows);
  run.values = arena.take<float>(rows * dim);
  return run;
}

inline Running from(const Running& run, int64_t row, int dim) {
  return {run.largest + row, run.sum + row, run.values + row * dim};
}

// Bring another chunk of keys into the running softmax.
inline void merge_rows(const Running& run, const Running& chunk, int64_t rows, int dim) {
  for (int64_t r = 0; r < rows; r++) {
    if (chunk.sum[r] == 0.0f) continue;  // it holds no key that the row sees
    const float largest = run.largest[r] > chunk.largest[r] ? run.largest[r] : chunk.largest[r];
    const float ours = exp2_of(run.largest[r] - largest), theirs = exp2_of(chunk.largest[r] - largest);
    run.largest[r] = largest;
    run.sum[r] = run.sum[r] * ours + chunk.sum[r] * theirs;
    float* to = run.values + r * dim;
    const float* add = chunk.values + r * dim;
    for (int d = 0; d < dim; d++) to[d] = to[d] * ours + add[d] * theirs;
  }
}

inline void clear_rows(const Running& run, int64_t rows, int dim) {
  for (int64_t r = 0; r < rows; r++) {
    run.largest[r] = -INFINITY;
    run.sum[r] = 0.0f;
  }
  std::memset(run.values, 0, static_cast<size_t>(rows) * dim * sizeof(float));
}

// Keys of the chunk at `begin` that a row of the task sees.
inline int visible_keys(const AttendCall& call, const Sequence& s, const AttendTask& t, int64_t row, int64_t begin) {
  const int64_t seen = (call.causal ? s.keys - s.rows + t.first_row + row + 1 : s.keys) - begin;
  return static_cast<int>(seen < 0 ? 0 : seen > kChunk ? kChunk : seen);
}

inline void write_rows(const AttendCall& call, const Sequence& s, const AttendTask& t, const Running& run) {
  const int group = call.heads / call.key_heads, dim = call.dim;
  for (int64_t i = 0; i < t.key_heads * t.rows * group; i++) {
    const int64_t row = s.first_row + t.first_row + i / group % t.rows;
    const int64_t head = (t.first_head + i / (t.rows * group)) * group + i % group;
    const int64_t at = (row * call.heads + head) * dim;
    const float* from = run.values + i * dim;
    const float factor = run.sum[i] == 0.0f ? 0.0f : 1.0f / run.sum[i];  // a NaN stays one
    if (call.type == Type::F32) {
      float* to = static_cast<float*>(call.out) + at;
      for (int d = 0; d < dim; d++) to[d] = from[d] * factor;
    } else {
      uint16_t* to = static_cast<uint16_t*>(call.out) + at;
      for (int d = 0; d < dim; d++) to[d] = to_bf16(from[d] * factor);
    }
  }
}

inline int64_t queries_of(const AttendCall& call, const AttendTask& t) {
  return t.key_heads * t.rows * (call.heads / call.key_heads);
}

// Where chunk `index` of a task keeps its softmax until it is merged.
inline Running partial_of(const AttendCall& call, const AttendTask& t, int64_t index) {
  const int64_t queries = queries_of(call, t);
  float* at = t.partials + index * queries * (call.dim + 2);
  return {at, at + queries, at + 2 * queries};
}

// Engine: reads a task's queries, then works out one chunk of keys after another.
template <class Engine>
void attend_task(const AttendCall& call, const Sequence& s, const AttendTask& t) {
  thread_local Scratch scratch;
  const int64_t queries = queries_of(call, t);
  Arena sizes(nullptr);
  Engine(call, s, t, sizes);
  if (!t.partials) {
    take_running(sizes, queries, call.dim);
    take_running(sizes, queries, call.dim);
  }
  scratch.reserve(sizes.used());

  Arena arena(scratch.data());
  Engine engine(call, s, t, arena);
  Running run{}, chunk{};
  if (!t.partials) {
    run = take_running(arena, queries, call.dim);
    chunk = take_running(arena, queries, call.dim);
    clear_rows(run, queries, call.dim);
  }
  engine.read_queries();
  for (int64_t c = 0; c < t.chunks; c++) {
    if (t.partials) chunk = partial_of(call, t, c);
    engine.chunk((t.first_chunk + c) * kChunk, chunk);
    if (!t.partials) merge_rows(run, chunk, queries, call.dim);
  }
  if (!t.partials) write_rows(call, s, t, run);
}

inline void merge_task(const AttendCall& call, const Sequence& s, const AttendTask& t) {
  thread_local Scratch scratch;
  const int64_t queries = queries_of(call, t);
  Arena sizes(nullptr);
  take_running(sizes, queries, call.dim);
  scratch.reserve(sizes.used());
  Arena arena(scratch.data());
  const Running run = take_running(arena, queries, call.dim);
  clear_rows(run, queries, call.dim);
  for (int64_t c = 0; c < t.chunks; c++) merge_rows(run, partial_of(call, t, c), queries, call.dim);
  write_rows(call, s, t, run);
}

}  // namespace
}  // namespace px
