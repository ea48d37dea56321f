// What AVX2 has of its own for the caches of attention: bytes, which become float32 as they are read.
#pragma once

#include "vectors_avx2.h"

#include "attend_stored.h"

namespace px {
namespace {

using StoredBF16 = WideBF16;

// Four channels in a word.
struct StoredI8 : Singles {
  static constexpr int kBytes = 1, kUnitsOfWord = 4;
  static constexpr bool kScaled = true;

  static void read_query(const AttendCall& call, int64_t at, uint32_t* to, int units, Query& q) {
    Singles::read_query(call, at, to, units, q);
    if (call.rotate) hadamard(reinterpret_cast<float*>(to), call.dim);
  }

  static Units key(Units x, int part) {
    return units_of(_mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(x, 24 - 8 * part), 24)));
  }

  static Floats score(const Query& q, const Scales& scales, int j) {
    return Singles::score(q, scales, j) * load(scales.keys + j);
  }

  static void put_weights(const Query& q, const Scales& scales, int j, Floats p) {
    Singles::put_weights(q, scales, j, p * load(scales.values + j));
  }

  static void unpack(const char* const* rows, int64_t channel, int, Units (&x)[kTileColumns]) {
#pragma GCC unroll 2
    for (int i = 0; i < kTileColumns; i++) {
      const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(rows[0] + channel + kLanes * i));
      x[i] = units_of(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)));
    }
  }
};

}  // namespace
}  // namespace px
