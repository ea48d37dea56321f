// Limits of the machine in plain C++; the compiler makes vectors of it where it can.
#include "measure.h"

#include <cstring>

namespace px {

uint64_t read_portable(const uint8_t* from, int64_t bytes) {
  uint64_t sums[4] = {0, 0, 0, 0};
  int64_t i = 0;
  for (; i + 32 <= bytes; i += 32) {
    uint64_t words[4];
    std::memcpy(words, from + i, 32);
    for (int j = 0; j < 4; j++) sums[j] += words[j];
  }
  for (; i < bytes; i++) sums[0] += from[i];
  return sums[0] + sums[1] + sums[2] + sums[3];
}

int64_t int8_portable(int64_t rounds, int64_t* out) {
  constexpr int kLanes = 32;
  int32_t sums[kLanes] = {};
  int16_t left[kLanes], right[kLanes];
  for (int i = 0; i < kLanes; i++) {
    left[i] = static_cast<int16_t>(i + (rounds & 1));
    right[i] = static_cast<int16_t>(3 - i);
  }
  for (int64_t round = 0; round < rounds; round++) {
    const auto change = static_cast<int16_t>(round & 127);  // or the products would be the same in every round
    for (int i = 0; i < kLanes; i++) sums[i] += left[i] * static_cast<int16_t>(right[i] ^ change);
  }
  int64_t total = 0;
  for (int i = 0; i < kLanes; i++) total += sums[i];
  *out = total;
  return 2 * kLanes * rounds;
}

}  // namespace px
