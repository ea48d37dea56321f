// The search for scales in plain C++.
#include "pack_search.h"

namespace px {

namespace {

struct Codes {
  int32_t v[16];
};

// 16 floats.
struct F {
  float v[16];

  F() = default;
  explicit F(float all) {
    for (float& x : v) x = all;
  }
  static F load(const float* from) {
    F out;
    std::memcpy(out.v, from, sizeof(out.v));
    return out;
  }
  void store(float* to) const { std::memcpy(to, v, sizeof(v)); }

  template <class Operation>
  static F each(const F& a, const F& b, Operation operation) {
    F out;
    for (int i = 0; i < 16; i++) out.v[i] = operation(a.v[i], b.v[i]);
    return out;
  }
  friend F operator*(const F& a, const F& b) { return each(a, b, [](float x, float y) { return x * y; }); }
  friend F operator+(const F& a, const F& b) { return each(a, b, [](float x, float y) { return x + y; }); }
  friend F operator/(const F& a, const F& b) { return each(a, b, [](float x, float y) { return x / y; }); }

  float total() const {
    float half[8];
    for (int i = 0; i < 8; i++) half[i] = v[i] + v[8 + i];
    for (int i = 0; i < 4; i++) half[i] = half[i] + half[4 + i];
    return (half[0] + half[2]) + (half[1] + half[3]);
  }

  template <int Bits>
  Codes nearest() const {
    Codes codes{};
    for (int i = 0; i < 16; i++) {
      if (Bits == 4) {
        for (int c = 0; c < 15; c++) codes.v[i] += v[i] > kBorders4[c];
      } else {
        const float level = (v[i] + 12582912.0f) - 12582912.0f;  // to a whole number
        codes.v[i] = static_cast<int32_t>(level < -127.0f ? -127.0f : level > 127.0f ? 127.0f : level) + 128;
      }
    }
    return codes;
  }

  template <int Bits>
  static F levels(const Codes& codes) {
    F out;
    for (int i = 0; i < 16; i++) out.v[i] = static_cast<float>(Bits == 4 ? kLevels4[codes.v[i]] : codes.v[i] - 128);
    return out;
  }

  static void store(const Codes& codes, uint8_t* to) {
    for (int i = 0; i < 16; i++) to[i] = static_cast<uint8_t>(codes.v[i]);
  }
};

}  // namespace

const PackKernels pack_portable = {fit_group<F>, snap_group<F>};

}  // namespace px
