// Keys and values into the cache: copied, or as bytes with one scale for each row and head.
#pragma once

#include <cmath>
#include <cstring>
#include <utility>

#include "attend_rows.h"

namespace px {
namespace {

constexpr int kMaxDim = 256;  // channels of a head; more would overflow the sums of products of bytes

inline void read_row(Type type, const void* from, int64_t at, int dim, float* to) {
  if (type == Type::F32) {
    std::memcpy(to, static_cast<const float*>(from) + at, dim * sizeof(float));
  } else {
    const uint16_t* x = static_cast<const uint16_t*>(from) + at;
    for (int d = 0; d < dim; d++) to[d] = to_float(x[d]);
  }
}

// Channels that are large in every key would leave few steps to the others; after this orthogonal transform, of
// queries and keys alike, all channels are of similar size and the scores are what they were. All stages are alike,
// which compilers turn into vector code. `dim` is a power of two.
inline void hadamard(float* x, int dim) {
  float buffer[kMaxDim];
  float *from = x, *to = buffer;
  const int half = dim / 2;
  for (int stage = 1; stage < dim; stage *= 2) {
    for (int i = 0; i < half; i++) {
      const float a = from[2 * i], b = from[2 * i + 1];
      to[i] = a + b;
      to[half + i] = a - b;
    }
    std::swap(from, to);
  }
  const float factor = 1.0f / std::sqrt(static_cast<float>(dim));
  for (int d = 0; d < dim; d++) x[d] = from[d] * factor;
}

// The largest size among `dim` numbers, a multiple of 16; NaN when one of them is.
inline float largest_of(const float* x, int dim) {
  uint32_t lanes[16] = {}, largest = 0;  // as bits, so that NaN counts as larger than infinity
  for (int d = 0; d < dim; d += 16)
    for (int i = 0; i < 16; i++) {
      uint32_t size;
      std::memcpy(&size, x + d + i, 4);
      size &= 0x7fffffff;
      lanes[i] = lanes[i] > size ? lanes[i] : size;
    }
  for (const uint32_t lane : lanes) largest = largest > lane ? largest : lane;
  float size;
  std::memcpy(&size, &largest, 4);
  return size;
}

// What numbers up to `largest` are multiplied by to become integers up to `most`; 0 where all become 0.
inline float factor_of(float largest, float most) {
  return largest > 0.0f && largest < INFINITY ? most / largest : 0.0f;
}

inline int32_t level_of(float x, float factor) {
  return factor > 0.0f ? static_cast<int32_t>(std::nearbyint(x * factor)) : 0;  // else x may be NaN or infinite
}

inline float quantize_row(const float* x, int dim, int8_t* to) {
  const float largest = largest_of(x, dim);
  const float factor = factor_of(largest, 127.0f);
  for (int d = 0; d < dim; d++) to[d] = static_cast<int8_t>(level_of(x[d], factor));
  return largest / 127.0f;
}

void store_rows(const AttendCall& call, int64_t first_row, int64_t last_row) {
  const int64_t width = static_cast<int64_t>(call.key_heads) * call.dim;
  const int size = call.type == Type::F32 ? 4 : 2;
  for (int64_t row = first_row; row < last_row; row++) {
    const int64_t slot = call.slots[row];
    if (call.stored != Type::I8) {
      std::memcpy(static_cast<char*>(call.keys) + slot * call.key_stride * size,
                  static_cast<const char*>(call.new_k) + row * call.new_k_stride * size, width * size);
      std::memcpy(static_cast<char*>(call.values) + slot * call.value_stride * size,
                  static_cast<const char*>(call.new_v) + row * call.new_v_stride * size, width * size);
      continue;
    }
    for (int head = 0; head < call.key_heads; head++) {
      float x[kMaxDim];
      const int64_t at = static_cast<int64_t>(head) * call.dim, scale = slot * call.key_heads + head;
      read_row(call.type, call.new_k, row * call.new_k_stride + at, call.dim, x);
      if (call.rotate) hadamard(x, call.dim);
      call.key_scales[scale] = quantize_row(x, call.dim, static_cast<int8_t*>(call.keys) + slot * call.key_stride + at);
      read_row(call.type, call.new_v, row * call.new_v_stride + at, call.dim, x);
      call.value_scales[scale] =
          quantize_row(x, call.dim, static_cast<int8_t*>(call.values) + slot * call.value_stride + at);
    }
  }
}

}  // namespace
}  // namespace px
