// Products of bfloat16: near a sum in double, on odd shapes, with and without biases, gated and not.
#include <cmath>
#include <vector>

#include "check.h"

extern "C" int px_can_dense();
extern "C" int px_dense(const int64_t* numbers);

namespace {

using Halves = std::vector<uint16_t>;

Halves drawn(Random& random, int64_t count) {
  Halves out(count);
  for (auto& value : out) value = px::bfloat_of_float(std::normal_distribution<float>()(random));
  return out;
}

double number(const Halves& from, int64_t at) { return px::read_number(from.data(), px::Number::BFloat16, at); }

double product(const Halves& x, const Halves& weight, const Halves& bias, int64_t m, int64_t n, int64_t width) {
  double sum = bias.empty() ? 0 : number(bias, n);
  for (int64_t k = 0; k < width; k++) sum += number(x, m * width + k) * number(weight, n * width + k);
  return sum;
}

}  // namespace

void check_dense(Random& random) {
  if (!px_can_dense()) return;
  for (int attempt = 0; attempt < 150; attempt++) {
    const int64_t rows = attempt < 60 ? attempt % 50 : between(random, 1, 200), width = 2 * between(random, 1, 150);
    const int64_t outputs = between(random, 1, 600);
    const bool gated = attempt % 3 == 0;
    const Halves x = drawn(random, rows * width), first = drawn(random, outputs * width);
    const Halves second = drawn(random, outputs * width), none;
    const Halves bias = gated || attempt % 2 ? none : drawn(random, outputs);
    Halves out(rows * outputs), other(gated ? 0 : rows * outputs);
    const auto address = [](const Halves& of) { return reinterpret_cast<int64_t>(of.empty() ? nullptr : of.data()); };
    const std::vector<int64_t> numbers = {address(x), rows, width, width, 2, gated, 2,
                                          address(first), address(bias), outputs, address(out),
                                          address(second), 0, outputs, address(gated ? out : other)};
    CHECK(px_dense(numbers.data()), "no memory");
    for (int probe = 0; probe < 40 && rows > 0; probe++) {
      const int64_t m = between(random, 0, rows - 1), n = between(random, 0, outputs - 1);
      double expected = product(x, first, bias, m, n, width);
      const double right = product(x, second, none, m, n, width);
      if (gated) expected = expected / (1 + std::exp(-expected)) * right;
      const double found = number(out, m * outputs + n), most = 0.01 * (std::fabs(expected) + width * 0.01);
      CHECK(std::fabs(found - expected) <= most, "%g instead of %g", found, expected);
      if (!gated) CHECK(std::fabs(number(other, m * outputs + n) - right) <= 0.01 * (std::fabs(right) + width * 0.01), "second");
    }
  }
}
