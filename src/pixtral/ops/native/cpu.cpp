// What the CPU reports, and which kernels follow from it.
#include "cpu.h"

#include <atomic>

#include "api.h"

namespace px {

namespace {

std::atomic<int> chosen{-1};

}  // namespace

Isa best_isa() {
#ifdef PX_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vnni");
  if (avx512) return __builtin_cpu_supports("avx512bf16") ? Isa::Avx512Bf16 : Isa::Avx512;
  return avx2 ? Isa::Avx2 : Isa::Portable;
#else
  return Isa::Portable;
#endif
}

Isa isa() {
  const int wanted = chosen.load(std::memory_order_relaxed);
  return wanted < 0 ? best_isa() : static_cast<Isa>(wanted);
}

}  // namespace px

PX_API int px_best_isa() { return static_cast<int>(px::best_isa()); }

PX_API int px_isa() { return static_cast<int>(px::isa()); }

PX_API int px_set_isa(int wanted) {
  if (wanted > px_best_isa()) return 0;
  px::chosen.store(wanted < 0 ? -1 : wanted, std::memory_order_relaxed);
  return 1;
}
