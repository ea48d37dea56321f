// Packing and unpacking: each instruction set gives the bytes of the plain one, and weights come back nearly the same.
#include <cmath>
#include <limits>
#include <vector>

#include "check.h"

extern "C" {
int64_t px_pack(const int64_t* numbers, float* work);
void px_unpack(const int64_t* numbers);
}

namespace {

struct Packed {
  std::vector<uint8_t> codes;
  std::vector<int8_t> scales;
  std::vector<float> row_scales;
};

std::vector<int64_t> describe(char* dense, px::Number type, int64_t rows, int64_t width, int64_t bits, int64_t group,
                              Packed& packed) {
  return {reinterpret_cast<int64_t>(dense), static_cast<int64_t>(type), rows, width, width, bits, group, 2,
          reinterpret_cast<int64_t>(packed.codes.data()), reinterpret_cast<int64_t>(packed.scales.data()),
          reinterpret_cast<int64_t>(packed.row_scales.data())};
}

}  // namespace

void check_pack(Random& random) {
  for (int attempt = 0; attempt < 100; attempt++) {
    const int64_t group = 32 << between(random, 0, 2), bits = 4 << between(random, 0, 1);
    const int64_t width = group * between(random, 1, 5), rows = between(random, 1, 50), padded = (rows + 15) / 16 * 16;
    const auto type = static_cast<px::Number>(between(random, 0, 2));
    std::vector<char> weights(rows * width * bytes_of(type));
    for (int64_t i = 0; i < rows * width; i++)
      px::write_number(weights.data(), type, i, i / width == 3 ? 0.0f : std::normal_distribution<float>()(random));
    Packed expected;
    for (int isa = 0; isa <= px_best_isa(); isa++) {
      px_set_isa(isa);
      Packed packed;
      packed.codes.resize(padded * width * bits / 8);
      packed.scales.resize(padded * width / group);
      packed.row_scales.resize(padded);
      std::vector<float> work(padded * width / group);
      CHECK(px_pack(describe(weights.data(), type, rows, width, bits, group, packed).data(), work.data()) == -1,
            "finite weights were refused");
      std::vector<char> back(weights.size());
      px_unpack(describe(back.data(), type, rows, width, bits, group, packed).data());
      double lost = 0, all = 1e-9;
      for (int64_t i = 0; i < rows * width; i++) {
        const float weight = px::read_number(weights.data(), type, i);
        lost += std::pow(px::read_number(back.data(), type, i) - weight, 2);
        all += weight * weight;
      }
      CHECK(lost < (bits == 4 ? 0.015 : 0.0002) * all, "%g of the squares are lost", lost / all);
      if (isa == 0) expected = packed;
      CHECK(packed.codes == expected.codes && packed.scales == expected.scales && packed.row_scales == expected.row_scales,
            "instruction set %d", isa);
    }
    const int64_t place = between(random, 0, rows * width - 1);
    px::write_number(weights.data(), type, place, std::numeric_limits<float>::infinity());
    Packed packed = expected;
    std::vector<float> work(padded * width / group);
    const int64_t found = px_pack(describe(weights.data(), type, rows, width, bits, group, packed).data(), work.data());
    CHECK(found == place, "an infinity at %d was found at %d", int(place), int(found));
    px_set_isa(-1);
  }
}
