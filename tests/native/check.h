// The checks that run under the sanitizers: every kernel on odd shapes, with heap buffers that are not a byte too long.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "../../src/pixtral/ops/native/numbers.h"

#define CHECK(condition, ...)                                  \
  do {                                                         \
    if (!(condition)) {                                        \
      std::fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition); \
      std::fprintf(stderr, __VA_ARGS__);                       \
      std::fprintf(stderr, "\n");                              \
      std::exit(1);                                            \
    }                                                          \
  } while (0)

extern "C" {
int px_best_isa();
int px_set_isa(int wanted);
}

inline int64_t bytes_of(px::Number type) { return type == px::Number::Float32 ? 4 : 2; }

using Random = std::mt19937;

inline int64_t between(Random& random, int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(random);
}

void check_attend(Random& random);
void check_dense(Random& random);
void check_linear(Random& random);
void check_pack(Random& random);
void check_pool();
