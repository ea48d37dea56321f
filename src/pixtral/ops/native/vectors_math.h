// Functions of a register of floats, for whichever instruction set's vectors were included before.
#pragma once

#include <initializer_list>

namespace px {
namespace {

// exp(x) to about one unit in the last place: 2^n times a polynomial on +-log(2)/2.
inline Floats exp_of(Floats x) {
  x = smaller(splat(89.0f), larger(splat(-104.0f), x));  // past these it is 0 and infinity; in this order a NaN stays one
  const Floats n = nearest_whole(x * splat(1.44269504f));
  Floats r = fused(n, splat(-0.693359375f), x);
  r = fused(n, splat(2.12194440e-4f), r);
  Floats p = splat(1.9875691500e-4f);
  for (const float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    p = fused(p, r, splat(c));
  p = fused(p, r * r, r + splat(1.0f));
  return times_power(p, n);
}

// 2^x for x <= 0, the vector's twin of exp2_of in attend_rows.h.
inline Floats exp2_of(Floats x) {
  const Floats f = above_whole(x);
  Floats p = splat(1.867130703e-03f);
  p = fused(p, f, splat(9.017028957e-03f));
  p = fused(p, f, splat(5.579991411e-02f));
  p = fused(p, f, splat(2.401644499e-01f));
  p = fused(p, f, splat(6.931513118e-01f));
  p = fused(p, f, splat(1.0f));
  return times_power(p, x);
}

inline Floats silu(Floats x) { return x / (splat(1.0f) + exp_of(splat(0.0f) - x)); }

}  // namespace
}  // namespace px
