// The search for a group's scale and codes (quantized_weight.py says what it does and why), the same for every instruction
// set; F is what differs: 16 floats, in an unnamed namespace of the file that includes this.
//
// Everything is computed in the order of the Python version, so that both give the same bytes.
#pragma once

#include "pack.h"

namespace px {

constexpr float kPeaks4[] = {104.0f, 110.0f, 115.0f, 120.0f, 126.0f, 132.0f, 139.0f, 147.0f, 156.0f};
constexpr float kPeaks8[] = {127.0f};
constexpr float kSmallestWeight = 1e-30f;

struct Sums {
  float product;  // of weights and levels
  float square;   // of levels
};

template <class F, int Bits>
struct Search {
  alignas(64) float unit[kMostGroup];  // the weights, in -1 ... 1
  int64_t group;
  float peak;

  Search(const float* weights, int64_t count) : group(count) {
    uint32_t most = 0;
    for (int64_t k = 0; k < group; k++) {
      const uint32_t size = bits_of_float(weights[k]) & 0x7fffffff;
      most = size > most ? size : most;
    }
    peak = float_of_bits(most);
    for (int64_t k = 0; k < group; k += 16) (F::load(weights + k) / F(empty() ? 1.0f : peak)).store(unit + k);
  }

  bool empty() const { return peak < kSmallestWeight; }

  // `wanted(weights)` are the weights in levels, before rounding.
  template <class Wanted>
  Sums sums(Wanted wanted) const {
    F product(0.0f), square(0.0f);
    for (int64_t k = 0; k < group; k += 16) {
      const F weights = F::load(unit + k);
      const F levels = F::template levels<Bits>(wanted(weights).template nearest<Bits>());
      product = product + weights * levels;
      square = square + levels * levels;
    }
    return {product.total(), square.total()};
  }

  float fit() const {
    float best_score = -1.0f, best = 0.0f;
    auto attempt = [&](float target) {
      const Sums s = sums([&](F weights) { return weights * F(target); });
      const float scale = s.product / s.square;
      if (s.product * scale > best_score) {
        best_score = s.product * scale;
        best = scale;
      }
    };
    if constexpr (Bits == 4) {
      for (const float target : kPeaks4) attempt(target);
      for (const float target : kPeaks4) attempt(-target);
    } else {
      for (const float target : kPeaks8) attempt(target);
    }
    const Sums s = sums([&](F weights) { return weights / F(best); });
    return s.product / s.square * peak;
  }

  int8_t snap(float wanted, float row_scale, uint8_t* codes) const {
    const float size = wanted < 0.0f ? -wanted : wanted;
    float lower = static_cast<float>(static_cast<int32_t>(size / row_scale));
    lower = lower < 1.0f ? 1.0f : lower > 127.0f ? 127.0f : lower;
    const float upper = lower + 1.0f > 127.0f ? 127.0f : lower + 1.0f;
    float best_error = 0.0f, best_scale = 0.0f, best = 0.0f;
    for (int attempt = 0; attempt < 2; attempt++) {
      const float number = wanted < 0.0f ? -(attempt == 0 ? lower : upper) : (attempt == 0 ? lower : upper);
      const float scale = number * row_scale / peak;
      const Sums s = sums([&](F weights) { return weights / F(scale); });
      const float error = (scale * s.square - 2.0f * s.product) * scale;  // up to the sum of the weights' squares
      if (attempt == 0 || error < best_error) {
        best_error = error;
        best_scale = scale;
        best = number;
      }
    }
    for (int64_t k = 0; k < group; k += 16)
      F::store((F::load(unit + k) / F(best_scale)).template nearest<Bits>(), codes + k);
    return static_cast<int8_t>(best);
  }
};

template <class F>
static float fit_group(const float* weights, int64_t group, int64_t bits) {
  if (bits == 4) {
    const Search<F, 4> search(weights, group);
    return search.empty() ? 0.0f : search.fit();
  }
  const Search<F, 8> search(weights, group);
  return search.empty() ? 0.0f : search.fit();
}

template <class F>
static int8_t snap_group(const float* weights, int64_t group, int64_t bits, float wanted, float row_scale,
                         uint8_t* codes) {
  if (bits == 4) return Search<F, 4>(weights, group).snap(wanted, row_scale, codes);
  return Search<F, 8>(weights, group).snap(wanted, row_scale, codes);
}

}  // namespace px
