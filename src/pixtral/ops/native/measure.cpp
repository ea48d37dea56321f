// The limits of this machine, measured the way the kernels use it: with their threads and their instruction set.
#include <atomic>
#include <chrono>

#include "api.h"
#include "cpu.h"
#include "measure.h"
#include "pool.h"

namespace {

constexpr int64_t kChunk = 1 << 20;

std::atomic<uint64_t> sink{0};  // what is computed has to go somewhere, or the compiler leaves it out

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Operations per second of `threads` threads that do `rounds` rounds each.
template <class Work>
double rate(int threads, int64_t rounds, Work work) {
  std::atomic<int64_t> operations{0};
  const double start = now();
  px::parallel(threads, threads, [&](int64_t) {
    int64_t out = 0;
    operations.fetch_add(work(rounds, &out));
    sink.fetch_add(static_cast<uint64_t>(out));
  });
  return static_cast<double>(operations.load()) / (now() - start);
}

}  // namespace

// Seconds in which `threads` threads read `bytes` bytes once.
PX_API double px_measure_read(int threads, const void* buffer, int64_t bytes) {
  const auto* from = static_cast<const uint8_t*>(buffer);
  auto read = px::read_portable;
#ifdef PX_X86
  if (px::isa() >= px::Isa::Avx512) read = px::read_avx512;
#endif
  const double start = now();
  px::parallel(threads, (bytes + kChunk - 1) / kChunk, [&](int64_t chunk) {
    const int64_t at = chunk * kChunk;
    sink.fetch_add(read(from + at, bytes - at < kChunk ? bytes - at : kChunk));
  });
  return now() - start;
}

// Operations per second on 8-bit integers, two for each multiply-add.
PX_API double px_measure_int8(int threads, int64_t rounds) {
#ifdef PX_X86
  if (px::isa() >= px::Isa::Avx512) return rate(threads, rounds, px::int8_avx512);
  if (px::isa() == px::Isa::Avx2) return rate(threads, rounds, px::int8_avx2);
#endif
  return rate(threads, rounds, px::int8_portable);
}

// The same on bfloat16, or on the float32 that it becomes; 0 where the kernels have no such products.
PX_API double px_measure_bf16(int threads, int64_t rounds) {
#ifdef PX_X86
  if (px::isa() == px::Isa::Avx512Bf16) return rate(threads, rounds, px::bf16_avx512);
  if (px::isa() == px::Isa::Avx512) return rate(threads, rounds, px::f32_avx512);
  if (px::isa() == px::Isa::Avx2) return rate(threads, rounds, px::f32_avx2);
#endif
  (void)threads;
  (void)rounds;
  return 0;
}
