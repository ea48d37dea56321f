// Data types of activations and results, and what plain C++ needs to read and write them.
// Everything here is static: code of a header must not be shared between files for different instruction sets.
#pragma once

#include <cstdint>
#include <cstring>

namespace px {

enum class Number : int64_t { Float32 = 0, BFloat16 = 1, Float16 = 2 };

constexpr int8_t kLevels4[16] = {-126, -96, -76, -60, -46, -32, -20, -10, 2, 12, 24, 36, 50, 66, 84, 110};

// Between two levels: above border i, level i + 1 is nearer than level i. The last one makes it 16 numbers.
constexpr float kBorders4[16] = {-111.0f, -86.0f, -68.0f, -53.0f, -39.0f, -26.0f, -15.0f, -4.0f,
                                 7.0f, 18.0f, 30.0f, 43.0f, 58.0f, 75.0f, 97.0f, 3e38f};

static inline float float_of_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

static inline uint32_t bits_of_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

static inline float float_of_half(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t rest = half & 0x7fff;
  if (rest >= 0x7c00) return float_of_bits(sign | 0x7f800000 | (rest & 0x3ff) << 13);
  // exponents differ by 112; a product instead of a shift also scales what is below the smallest normal number
  return float_of_bits(sign | bits_of_float(float_of_bits(rest << 13) * 5.192296858534828e+33f));
}

static inline uint16_t half_of_float(float value) {
  const uint32_t bits = bits_of_float(value);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  const uint32_t rest = bits & 0x7fffffff;
  if (rest > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
  if (rest >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);
  if (rest < 0x38800000) {  // below the smallest normal half: adding 0.5 leaves its bits, rounded, at the end
    return static_cast<uint16_t>(sign | (bits_of_float(float_of_bits(rest) + 0.5f) - 0x3f000000));
  }
  return static_cast<uint16_t>(sign | ((rest + 0xfff + ((rest >> 13) & 1) - 0x38000000) >> 13));
}

static inline uint16_t bfloat_of_float(float value) {
  const uint32_t bits = bits_of_float(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

static inline float read_number(const void* from, Number type, int64_t at) {
  if (type == Number::Float32) return static_cast<const float*>(from)[at];
  const uint16_t bits = static_cast<const uint16_t*>(from)[at];
  return type == Number::BFloat16 ? float_of_bits(static_cast<uint32_t>(bits) << 16) : float_of_half(bits);
}

static inline void write_number(void* to, Number type, int64_t at, float value) {
  if (type == Number::Float32) {
    static_cast<float*>(to)[at] = value;
  } else {
    static_cast<uint16_t*>(to)[at] = type == Number::BFloat16 ? bfloat_of_float(value) : half_of_float(value);
  }
}

}  // namespace px
