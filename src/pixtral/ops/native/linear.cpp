// The quantized linear layer's driver: quantizes the activations once, then hands out strips of all weights.
#include "api.h"
#include "cpu.h"
#include "linear.h"
#include "pool.h"

#include <cstdlib>
#include <new>

namespace px {

namespace {

// A call as Python makes it: an array of 64-bit numbers, and behind it those of each weight.
struct Call {
  const void* x;
  int64_t type;    // of x, the biases' own apart, and of the results
  int64_t rows;
  int64_t width;
  int64_t stride;  // elements from one row of x to the next
  int64_t threads;
  int64_t gated;   // the first weight is the gate, the second is up
  int64_t weights;
};

const LinearKernels& kernels() {
#ifdef PX_X86
  if (isa() >= Isa::Avx512) return linear_avx512;
  if (isa() == Isa::Avx2) return linear_avx2;
#endif
  return linear_portable;
}

// Memory for quantized activations, kept by each thread that makes calls until it ends.
class Workspace {
 public:
  ~Workspace() { std::free(memory_); }
  char* reserve(size_t bytes) {
    if (bytes > size_) {
      std::free(memory_);
      size_ = 0;
      if (posix_memalign(&memory_, 64, bytes) != 0) memory_ = nullptr;
      if (memory_ == nullptr) throw std::bad_alloc();
      size_ = bytes;
    }
    return static_cast<char*>(memory_);
  }

 private:
  void* memory_ = nullptr;
  size_t size_ = 0;
};

thread_local Workspace workspace;

// One call whose weights need the same activations.
void run_alike(const Call& call, const Weight* weights) {
  const LinearKernels& kernels = px::kernels();
  const auto type = static_cast<Number>(call.type);
  const int threads = static_cast<int>(call.threads);
  Activations x{};
  x.rows = call.rows;
  x.width = call.width;
  const bool direct = call.rows <= kernels.most_direct;
  x.tile = direct ? call.rows : kernels.tile;
  x.block = direct ? ceil_div(call.width, kActivationGroup) * kActivationGroup : kernels.block;
  x.group = weights[0].group;
  x.flip = !direct && weights[0].bits == 4 ? kernels.panel_flip : 0;
  const size_t levels = static_cast<size_t>(ceil_div(x.rows * x.width, 64) * 64);
  const size_t offsets = static_cast<size_t>(ceil_div(x.rows * (x.width / x.group), 16) * 16);
  const size_t scales = static_cast<size_t>(x.rows * ceil_div(x.width, kActivationGroup));
  char* memory = workspace.reserve(levels + 4 * (offsets + scales));
  x.levels = reinterpret_cast<int8_t*>(memory);
  x.offsets = reinterpret_cast<int32_t*>(memory + levels);
  x.scales = reinterpret_cast<float*>(memory + levels + 4 * offsets);
  const int64_t tiles = ceil_div(x.rows, x.tile);
  parallel(tiles > 4 ? threads : 1, tiles, [&](int64_t tile) { kernels.quantize(call.x, type, call.stride, x, tile); });

  const int64_t step = call.gated ? kMostTiles / 2 : kMostTiles;
  int64_t total = 0;
  for (int64_t w = 0; w < (call.gated ? 1 : call.weights); w++) total += ceil_div(ceil_div(weights[w].rows, kTile), step);
  parallel(threads, total, [&](int64_t task) {
    const Weight* weight = weights;
    for (;; weight++) {
      const int64_t strips = ceil_div(ceil_div(weight->rows, kTile), step);
      if (task < strips) break;
      task -= strips;
    }
    const int64_t all = ceil_div(weight->rows, kTile);
    const int64_t last = (task + 1) * step < all ? (task + 1) * step : all;
    kernels.strip(x, *weight, call.gated ? weights + 1 : nullptr, task * step, last, type);
  });
}

// Weights of 4 bits and of 8 may need different activations.
void run(const Call& call, const Weight* weights) {
  if (call.rows == 0) return;
  if (call.gated || call.rows <= kernels().most_direct || kernels().panel_flip == 0) return run_alike(call, weights);
  Call alike = call;
  for (int64_t first = 0; first < call.weights; first += alike.weights) {
    alike.weights = 1;
    while (first + alike.weights < call.weights && weights[first + alike.weights].bits == weights[first].bits)
      alike.weights++;
    run_alike(alike, weights + first);
  }
}

}  // namespace

}  // namespace px

// 1 when done, 0 when there is no memory for the quantized activations.
PX_API int px_linear(const int64_t* numbers) {
  const auto& call = *reinterpret_cast<const px::Call*>(numbers);
  try {
    px::run(call, reinterpret_cast<const px::Weight*>(numbers + sizeof(px::Call) / 8));
  } catch (const std::bad_alloc&) {
    return 0;
  }
  return 1;
}
