// Quantized linear layers: each instruction set gives the bits of the plain one, which is near a sum in double.
#include <cmath>
#include <cstring>
#include <vector>

#include "check.h"

extern "C" int px_linear(const int64_t* numbers);

namespace {

struct Weight {
  int64_t bits, group, rows;
  std::vector<uint8_t> codes;
  std::vector<int8_t> scales;
  std::vector<float> row_scales, bias;

  Weight(Random& random, int64_t bits_, int64_t group_, int64_t rows_, int64_t width)
      : bits(bits_), group(group_), rows(rows_) {
    const int64_t padded = (rows + 15) / 16 * 16;
    codes.resize(padded * width * bits / 8);
    scales.resize(padded * width / group);
    row_scales.resize(padded);
    bias.resize(between(random, 0, 1) * rows);
    for (auto& code : codes) code = static_cast<uint8_t>(between(random, bits == 8, 255));
    for (auto& scale : scales) scale = static_cast<int8_t>(between(random, -127, 127));
    for (auto& scale : row_scales) scale = between(random, 1, 100) * 1e-5f;
    for (auto& b : bias) b = between(random, -100, 100) * 0.5f;
  }

  double value(int64_t n, int64_t k, int64_t width) const {
    const int64_t tile = n / 16, lane = n % 16;
    const uint8_t* from = codes.data() + tile * 16 * width * bits / 8;
    const uint8_t byte = bits == 8 ? from[k / 4 * 64 + 4 * lane + k % 4] : from[k / 8 * 64 + 4 * lane + k % 4];
    const int level = bits == 8 ? byte - 128 : px::kLevels4[k % 8 < 4 ? byte & 15 : byte >> 4];
    return static_cast<double>(row_scales[n]) * scales[(tile * (width / group) + k / group) * 16 + lane] * level;
  }
};

std::vector<std::vector<char>> call(const std::vector<char>& x, px::Number type, int64_t rows, int64_t width,
                                    const std::vector<Weight>& weights, bool gated) {
  std::vector<std::vector<char>> outs;
  std::vector<int64_t> numbers = {reinterpret_cast<int64_t>(x.data()), static_cast<int64_t>(type), rows, width, width, 2,
                                  gated, static_cast<int64_t>(weights.size())};
  for (const Weight& w : weights) {
    if (!gated || outs.empty()) outs.emplace_back(rows * w.rows * bytes_of(type));
    for (const int64_t number :
         {reinterpret_cast<int64_t>(w.codes.data()), reinterpret_cast<int64_t>(w.scales.data()),
          reinterpret_cast<int64_t>(w.row_scales.data()),
          w.bias.empty() ? int64_t{0} : reinterpret_cast<int64_t>(w.bias.data()), int64_t{0}, w.bits, w.group, w.rows,
          reinterpret_cast<int64_t>(outs.back().data())})
      numbers.push_back(number);
  }
  CHECK(px_linear(numbers.data()), "no memory");
  return outs;
}

void check_near(const std::vector<char>& x, int64_t rows, int64_t width, const Weight& w, const std::vector<char>& out) {
  for (int64_t attempt = 0; attempt < 5 && rows * w.rows > 0; attempt++) {
    const int64_t m = attempt * 7 % rows, n = attempt * 11 % w.rows;
    double sum = w.bias.empty() ? 0 : w.bias[n], size = 1e-6;
    for (int64_t k = 0; k < width; k++) {
      const double value = px::read_number(x.data(), px::Number::Float32, m * width + k) * w.value(n, k, width);
      sum += value;
      size += std::fabs(value);
    }
    const double found = px::read_number(out.data(), px::Number::Float32, m * w.rows + n);
    CHECK(std::fabs(found - sum) < 0.02 * size, "%g instead of %g", found, sum);
  }
}

}  // namespace

void check_linear(Random& random) {
  for (int attempt = 0; attempt < 200; attempt++) {
    const int64_t group = 32 << between(random, 0, 2), bits = 4 << between(random, 0, 1);
    const int64_t width = group * between(random, 1, 1100 / group), rows = attempt < 20 ? attempt : between(random, 1, 90);
    const auto type = static_cast<px::Number>(between(random, 0, 2));
    const bool gated = between(random, 0, 3) == 0;
    const int64_t first = between(random, 0, 70);
    std::vector<Weight> weights;
    weights.emplace_back(random, bits, group, first, width);
    weights.emplace_back(random, gated ? bits : 4 << between(random, 0, 1), group, gated ? first : between(random, 1, 90), width);
    std::vector<char> x(rows * width * bytes_of(type));
    for (int64_t i = 0; i < rows * width; i++)
      px::write_number(x.data(), type, i, std::normal_distribution<float>()(random));
    std::vector<std::vector<char>> expected;
    for (int isa = 0; isa <= px_best_isa(); isa++) {
      px_set_isa(isa);
      const auto outs = call(x, type, rows, width, weights, gated);
      if (isa == 0) {
        expected = outs;
        for (size_t i = 0; i < outs.size() && !gated && type == px::Number::Float32; i++)
          check_near(x, rows, width, weights[i], outs[i]);
      } else if (!gated) {
        CHECK(outs == expected, "instruction set %d, %d rows, width %d", isa, int(rows), int(width));
      }
    }
    px_set_isa(-1);
  }
}
