// What one thread does to find this machine's limits; see measure.cpp.
#pragma once

#include <cstdint>

namespace px {

// Reads every byte; the sum keeps the compiler from leaving the loads out.
uint64_t read_portable(const uint8_t* from, int64_t bytes);
uint64_t read_avx512(const uint8_t* from, int64_t bytes);

// `rounds` rounds of independent multiply-adds on registers; returns how many operations that were (two for each).
int64_t int8_portable(int64_t rounds, int64_t* out);
int64_t int8_avx2(int64_t rounds, int64_t* out);
int64_t int8_avx512(int64_t rounds, int64_t* out);
int64_t f32_avx2(int64_t rounds, int64_t* out);
int64_t f32_avx512(int64_t rounds, int64_t* out);
int64_t bf16_avx512(int64_t rounds, int64_t* out);

}  // namespace px
