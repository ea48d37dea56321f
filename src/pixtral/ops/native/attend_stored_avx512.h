// What differs between caches of float32, bfloat16 and bytes, for attention with AVX-512.
#pragma once

#include "attend_store.h"
#include "attend_tiles_avx512.h"

namespace px {
namespace {

constexpr float kLog2E = 1.4426950408889634f;

// What belongs to one query while a chunk is worked out.
struct Query {
  uint32_t* scores;     // kParts * kChunk
  uint32_t* weights;    // kParts * kChunk / kPerUnit
  uint32_t* sums;       // kParts * channels
  float factor;         // of scores, to base 2
  int32_t offset;       // I8: what the keys' offset of 128 adds to a score
  float unit;           // I8: of the 16-bit weights
};

// I8: scales of a chunk's keys and values, and of each value the largest scale up to it.
struct Scales {
  float keys[kChunk], values[kChunk], largest[kChunk];
};

struct Plain {
  static constexpr int kParts = 1, kUnitsOfWord = 1;
  static constexpr bool kScaled = false;

  static __m512i key(__m512i x, int) { return x; }

  // Raw scores of 16 keys; the factor comes later.
  static __m512 score(const Query& q, const Scales&, int j) { return _mm512_loadu_ps(q.scores + j); }

  static void set_unit(Query&, const Scales&, int) {}
};

struct StoredF32 : Plain {
  static constexpr int kPerUnit = 1, kBytes = 4;
  using ScoreDot = DotF32;
  using ValueDot = DotF32;

  static void read_query(const AttendCall& call, int64_t at, uint32_t* to, int, Query& q) {
    std::memcpy(to, static_cast<const float*>(call.q) + at, call.dim * 4);
    q.factor = call.scale * kLog2E;
  }

  // Up to 64 channels from `channel` on, of kPerUnit rows, as units; a row has `left` channels from there.
  static void unpack(const char* const* rows, int64_t channel, int left, __m512i (&x)[4]) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) x[i] = LoadUnits::load(rows[0] + (channel + 16 * i) * LoadUnits::kBytes, first_lanes(left - 16 * i));
  }

  static void put_weights(const Query& q, const Scales&, int j, __m512 p) { _mm512_storeu_ps(q.weights + j, p); }

  static void finish(const Query& q, int64_t, int dim, float* to) { std::memcpy(to, q.sums, dim * sizeof(float)); }
};

#ifdef __AVX512BF16__

struct StoredBF16 : Plain {
  static constexpr int kPerUnit = 2, kBytes = 2;
  using ScoreDot = DotBF16;
  using ValueDot = DotBF16;

  static void read_query(const AttendCall& call, int64_t at, uint32_t* to, int, Query& q) {
    std::memcpy(to, static_cast<const uint16_t*>(call.q) + at, call.dim * 2);
    q.factor = call.scale * kLog2E;
  }

  static void unpack(const char* const* rows, int64_t channel, int left, __m512i (&x)[4]) {
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
      const __mmask16 mask = first_lanes(left / 2 - 16 * i);
      const __m512i even = LoadUnits::load(rows[0] + 2 * channel + 64 * i, mask);
      const __m512i odd = LoadUnits::load(rows[1] + 2 * channel + 64 * i, mask);
      x[2 * i] = _mm512_unpacklo_epi16(even, odd);
      x[2 * i + 1] = _mm512_unpackhi_epi16(even, odd);
    }
  }

  static void put_weights(const Query& q, const Scales&, int j, __m512 p) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(q.weights + j / 2), narrow(p));
  }

  // Unpacking left channels 8 i + 0-3 of each 32 in one register and 8 i + 4-7 in the next.
  static void finish(const Query& q, int64_t, int dim, float* to) {
    for (int d = 0; d < dim; d += 32) {
      const __m512 low = _mm512_loadu_ps(q.sums + d), high = _mm512_loadu_ps(q.sums + d + 16);
      const __m512i order = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
      const __m512i after = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
      _mm512_storeu_ps(to + d, _mm512_permutex2var_ps(low, order, high));
      if (dim - d > 16) _mm512_storeu_ps(to + d + 16, _mm512_permutex2var_ps(low, after, high));
    }
  }
};

#else

// Without an instruction for products of bfloat16, everything is a float32 from the moment that it is read.
struct StoredBF16 : StoredF32 {
  static constexpr int kBytes = 2, kUnitsOfWord = 2;

  static void read_query(const AttendCall& call, int64_t at, uint32_t* to, int, Query& q) {
    read_row(call.type, call.q, at, call.dim, reinterpret_cast<float*>(to));
    q.factor = call.scale * kLog2E;
  }

  // The lower or the upper one of two channels, as a float.
  static __m512i key(__m512i x, int part) {
    return part ? _mm512_and_si512(x, _mm512_set1_epi32(static_cast<int>(0xffff0000))) : _mm512_slli_epi32(x, 16);
  }

  // Leaves the even channels of each 32 in one register and the odd ones in the next.
  static void unpack(const char* const* rows, int64_t channel, int left, __m512i (&x)[4]) {
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
      const __m512i y = LoadUnits::load(rows[0] + 2 * channel + 64 * i, first_lanes(left / 2 - 16 * i));
      x[2 * i] = key(y, 0);
      x[2 * i + 1] = key(y, 1);
    }
  }

  static void finish(const Query& q, int64_t, int dim, float* to) {
    const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i second = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    for (int d = 0; d < dim; d += 32) {
      const __m512 even = _mm512_loadu_ps(q.sums + d), odd = _mm512_loadu_ps(q.sums + d + 16);
      _mm512_storeu_ps(to + d, _mm512_permutex2var_ps(even, first, odd));
      if (dim - d > 16) _mm512_storeu_ps(to + d + 16, _mm512_permutex2var_ps(even, second, odd));
    }
  }
};

#endif

// Queries and weights as 16-bit numbers in two parts of a byte, keys and values as bytes: sums of products are exact.
struct StoredI8 {
  static constexpr int kPerUnit = 4, kBytes = 1, kParts = 2, kUnitsOfWord = 1;
  static constexpr bool kScaled = true;
  using ScoreDot = DotSignedA;
  using ValueDot = DotUnsignedA;

  static void read_query(const AttendCall& call, int64_t at, uint32_t* to, int units, Query& q) {
    constexpr float kMost = 127.0f * 256.0f;  // the upper part stays within a byte
    float x[kMaxDim];
    read_row(call.type, call.q, at, call.dim, x);
    if (call.rotate) hadamard(x, call.dim);
    const float largest = largest_of(x, call.dim), factor = largest > 0.0f ? kMost / largest : 0.0f;
    int8_t *upper = reinterpret_cast<int8_t*>(to), *lower = upper + 4 * units;
    int32_t total = 0;
    for (int d = 0; d < call.dim; d++) {
      const int32_t v = static_cast<int32_t>(std::nearbyint(x[d] * factor)), high = (v + 128) >> 8;
      upper[d] = static_cast<int8_t>(high);
      lower[d] = static_cast<int8_t>(v - 256 * high);
      total += v;
    }
    q.offset = 128 * total;
    q.factor = largest / kMost * call.scale * kLog2E;
  }

  static __m512i key(__m512i x, int) { return _mm512_xor_si512(x, _mm512_set1_epi8(-128)); }  // plus 128, unsigned

  static void unpack(const char* const* rows, int64_t channel, int left, __m512i (&x)[4]) {
    __m512i y[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) y[i] = LoadUnits::load(rows[i] + channel, first_lanes(left / 4));
    const __m512i a = _mm512_unpacklo_epi8(y[0], y[1]), b = _mm512_unpackhi_epi8(y[0], y[1]);
    const __m512i c = _mm512_unpacklo_epi8(y[2], y[3]), d = _mm512_unpackhi_epi8(y[2], y[3]);
    x[0] = _mm512_unpacklo_epi16(a, c);
    x[1] = _mm512_unpackhi_epi16(a, c);
    x[2] = _mm512_unpacklo_epi16(b, d);
    x[3] = _mm512_unpackhi_epi16(b, d);
  }

  static __m512i whole(const uint32_t* upper, int64_t stride) {
    return _mm512_add_epi32(_mm512_slli_epi32(_mm512_loadu_si512(upper), 8), _mm512_loadu_si512(upper + stride));
  }

  static __m512 score(const Query& q, const Scales& scales, int j) {
    const __m512i x = _mm512_sub_epi32(whole(q.scores + j, kChunk), _mm512_set1_epi32(q.offset));
    return _mm512_mul_ps(_mm512_cvtepi32_ps(x), _mm512_loadu_ps(scales.keys + j));
  }

  // The unit follows from the keys that the query sees and from no others.
  static void set_unit(Query& q, const Scales& scales, int visible) {
    const float largest = visible > 0 ? scales.largest[visible - 1] : 0.0f;
    q.unit = largest > 0.0f ? largest / 65535.0f : 1.0f;
  }

  static void put_weights(const Query& q, const Scales& scales, int j, __m512 p) {
    const __m512 factor = _mm512_mul_ps(_mm512_loadu_ps(scales.values + j), _mm512_set1_ps(1.0f / q.unit));
    const __m512i x = _mm512_cvtps_epi32(_mm512_mul_ps(p, factor));
    uint8_t* to = reinterpret_cast<uint8_t*>(q.weights) + j;
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(_mm512_srli_epi32(x, 8)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + kChunk), _mm512_cvtepi32_epi8(x));
  }

  // Unpacking left four channels of each 16 in turn in each of the four registers.
  static void finish(const Query& q, int64_t channels, int dim, float* to) {
    for (int d = 0; d < dim; d += 64) {
      __m512 x[4];
      for (int i = 0; i < 4; i++)
        x[i] = _mm512_mul_ps(_mm512_cvtepi32_ps(whole(q.sums + d + 16 * i, channels)), _mm512_set1_ps(q.unit));
      const __m512 a = _mm512_shuffle_f32x4(x[0], x[1], 0x44), b = _mm512_shuffle_f32x4(x[0], x[1], 0xee);
      const __m512 c = _mm512_shuffle_f32x4(x[2], x[3], 0x44), e = _mm512_shuffle_f32x4(x[2], x[3], 0xee);
      _mm512_storeu_ps(to + d, _mm512_shuffle_f32x4(a, c, 0x88));
      if (dim - d > 16) _mm512_storeu_ps(to + d + 16, _mm512_shuffle_f32x4(a, c, 0xdd));
      if (dim - d > 32) _mm512_storeu_ps(to + d + 32, _mm512_shuffle_f32x4(b, e, 0x88));
      if (dim - d > 48) _mm512_storeu_ps(to + d + 48, _mm512_shuffle_f32x4(b, e, 0xdd));
    }
  }
};

}  // namespace
}  // namespace px
