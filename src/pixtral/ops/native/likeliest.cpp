// The best of each row of bfloat16 scores, without making them wider first.
#include <algorithm>
#include <cstdint>

#include "api.h"
#include "numbers.h"
#include "pool.h"

namespace px {

namespace {

constexpr int64_t kRun = 2048;  // numbers of which the best is sought before the next ones are looked at
constexpr int16_t kInfinity = 0x7f80;

// Integers in the order of the numbers; what lies beyond the infinities is not a number.
inline int16_t ordered(uint16_t bits) {
  const auto value = static_cast<int16_t>(bits);
  return static_cast<int16_t>(value ^ ((value >> 15) & 0x7fff));
}

void likeliest_row(const uint16_t* x, int64_t width, int64_t* token, float* value) {
  int16_t best = INT16_MIN, least = INT16_MAX;
  int64_t where = 0;
  for (int64_t start = 0; start < width; start += kRun) {
    const int64_t end = std::min(start + kRun, width);
    int16_t high = INT16_MIN, low = INT16_MAX;
    for (int64_t i = start; i < end; i++) {
      const int16_t number = ordered(x[i]);
      high = std::max(high, number);
      low = std::min(low, number);
    }
    if (high > best) best = high, where = start;
    least = std::min(least, low);
  }
  const auto bits = static_cast<uint16_t>(best ^ ((best >> 15) & 0x7fff));
  *value = float_of_bits(static_cast<uint32_t>(bits) << 16);
  if (best > kInfinity || least < ~kInfinity) *value = float_of_bits(0x7fc00000);
  if ((bits & 0x7fff) == 0) {  // both zeros are equally good
    where = std::find_if(x, x + width, [](uint16_t other) { return (other & 0x7fff) == 0; }) - x;
  } else {
    where = std::find(x + where, x + width, bits) - x;
  }
  *token = where;
}

}  // namespace

}  // namespace px

// x (rows, width), width > 0 -> the first token with the best value of each row, and the value; NaN if there is one.
PX_API void px_likeliest(const uint16_t* x, int64_t rows, int64_t width, int64_t* tokens, float* values, int threads) {
  px::parallel(threads, rows, [&](int64_t row) { px::likeliest_row(x + row * width, width, tokens + row, values + row); });
}
