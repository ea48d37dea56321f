// The driver of the linear layer on bfloat16 weights: packs the activations, then hands out panels and strips of weights.
#include "dense.h"

#include <cstdlib>
#include <memory>

#include "api.h"
#include "cpu.h"
#include "pool.h"

namespace px {

namespace {

// A call as Python makes it: an array of 64-bit numbers, and behind it those of each weight.
struct Call {
  const uint16_t* x;
  int64_t rows;
  int64_t width;   // even
  int64_t stride;  // numbers from one row of x to the next
  int64_t threads;
  int64_t gated;  // the first weight is the gate, the second is up
  int64_t weights;
};

constexpr int64_t kTaskWeights = 1 << 16;  // weights of one task, for few rows

const DenseKernels* kernels() {
#ifdef PX_X86
  if (isa() == Isa::Avx512Bf16) return &dense_avx512_bf16;
  if (isa() == Isa::Avx512) return &dense_avx512;
  if (isa() == Isa::Avx2) return &dense_avx2;
#endif
  return nullptr;
}

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

// Strips of `strip` rows of all weights, `copies` tasks for each: which weight, where it begins, which copy.
template <class Task>
void for_strips(const Call& call, const DenseWeight* weights, int threads, int64_t strip, int64_t copies, Task&& body) {
  const int64_t count = call.gated ? 1 : call.weights;
  int64_t total = 0;
  for (int64_t w = 0; w < count; w++) total += (weights[w].rows + strip - 1) / strip * copies;
  parallel(threads, total, [&](int64_t task) {
    const DenseWeight* weight = weights;
    for (;; weight++) {
      const int64_t tasks = (weight->rows + strip - 1) / strip * copies;
      if (task < tasks) break;
      task -= tasks;
    }
    const int64_t begin = task / copies * strip;
    body(*weight, begin, begin + strip < weight->rows ? begin + strip : weight->rows, task % copies);
  });
}

void run_few(const DenseKernels& kernels, const Call& call, const DenseWeight* weights) {
  const DenseFew few{call.x, call.stride, call.rows, call.width};
  const int64_t fitting = kTaskWeights / call.width / 16 * 16, strip = fitting < 16 ? 16 : fitting;
  const DenseWeight* up = call.gated ? weights + 1 : nullptr;
  for_strips(call, weights, static_cast<int>(call.threads), strip, 1,
             [&](const DenseWeight& weight, int64_t begin, int64_t end, int64_t) {
               kernels.few(few, weight, up, begin, end);
             });
}

bool run_many(const DenseKernels& kernels, const Call& call, const DenseWeight* weights) {
  const int threads = static_cast<int>(call.threads);
  const int64_t units = call.width / kernels.unit, height = kernels.rows, panels = (call.rows + height - 1) / height;
  void* memory = nullptr;
  if (posix_memalign(&memory, 64, static_cast<size_t>(panels * height * units) * 4) != 0) return false;
  const std::unique_ptr<void, Free> owner(memory);
  auto* packed = static_cast<uint32_t*>(memory);
  const auto rows_of = [&](int64_t panel) {
    const int64_t left = call.rows - panel * height;
    return left < height ? left : height;
  };
  parallel(panels > 1 ? threads : 1, panels, [&](int64_t panel) {
    const uint16_t* from = call.x + panel * height * call.stride;
    kernels.pack(from, call.stride, rows_of(panel), units, packed + panel * height * units);
  });
  const DenseWeight* up = call.gated ? weights + 1 : nullptr;
  const int64_t together = kernels.panels, groups = (panels + together - 1) / together;
  for_strips(call, weights, threads, kernels.strip, groups,
             [&](const DenseWeight& weight, int64_t begin, int64_t end, int64_t group) {
               DensePanel x[kDenseMostPanels];
               int count = 0;
               for (int64_t i = group * together; i < panels && i < (group + 1) * together; i++) {
                 const DensePanel panel{packed + i * height * units, rows_of(i), i * height, units};
                 if (panel.rows == height) x[count++] = panel;
                 else kernels.multiply(&panel, 1, weight, up, begin, end);
               }
               if (count) kernels.multiply(x, count, weight, up, begin, end);
             });
  return true;
}

}  // namespace

}  // namespace px

// Whether px_dense can be called: there is code for this CPU.
PX_API int px_can_dense() { return px::kernels() != nullptr; }

// 1 when done, 0 when there is no memory for the packed activations.
PX_API int px_dense(const int64_t* numbers) {
  const px::DenseKernels& kernels = *px::kernels();
  const auto& call = *reinterpret_cast<const px::Call*>(numbers);
  const auto* weights = reinterpret_cast<const px::DenseWeight*>(numbers + sizeof(px::Call) / 8);
  if (call.rows == 0 || call.width == 0) return 1;
  if (call.rows > px::kDenseFew) return px::run_many(kernels, call, weights);
  px::run_few(kernels, call, weights);
  return 1;
}
