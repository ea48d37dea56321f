// Divides a call of attention into tasks and hands them to the threads.
#include "attend.h"

#include <cstdlib>
#include <vector>

#include "api.h"
#include "cpu.h"
#include "pool.h"

namespace px {
namespace {
constexpr int kQueries = 192;   // query rows of a task over many rows: its keys are transposed once for all of them
constexpr int kHeads = 8;       // key heads of a task over few rows: they lie side by side in memory
constexpr int kStoreRows = 16;  // rows that one task stores
constexpr int64_t kSmall = 1 << 20;  // multiplications that are not worth waking a thread

const AttendKernels* kernels() {
#ifdef PX_X86
  if (isa() == Isa::Avx512Bf16) return &attend_avx512_bf16;
  if (isa() == Isa::Avx512) return &attend_avx512;
  if (isa() == Isa::Avx2) return &attend_avx2;
#endif
  return nullptr;
}

// Memory for partial results that the calling thread keeps.
class Partials {
 public:
  ~Partials() { std::free(memory_); }
  float* reserve(size_t floats) {
    if (floats > size_) {
      std::free(memory_);
      memory_ = static_cast<float*>(std::malloc(floats * sizeof(float)));
      size_ = floats;
    }
    return memory_;
  }

 private:
  float* memory_ = nullptr;
  size_t size_ = 0;
};

std::vector<Sequence> sequences_of(const AttendCall& call) {
  std::vector<Sequence> found;
  int64_t row = 0;
  for (int64_t i = 0; i < call.sequences; i++) {
    const int64_t rows = call.layout[i], keys = call.layout[call.sequences + i];
    const int64_t start = call.layout[2 * call.sequences + i];
    found.push_back({row, rows, keys, start, call.table ? call.table + start : nullptr});
    row += rows;
  }
  return found;
}

}  // namespace
}  // namespace px

// Whether there is a kernel for the instruction set in use; where there is none, PyTorch does the work.
PX_API int px_can_attend() { return px::kernels() != nullptr; }

PX_API void px_attend(const px::AttendCall* given) {
  using namespace px;
  const AttendCall& call = *given;
  const AttendKernels& kernel = *kernels();
  const std::vector<Sequence> all = sequences_of(call);
  if (call.new_k) {
    const int64_t tasks = (call.rows + kStoreRows - 1) / kStoreRows;
    parallel(call.threads, tasks, [&](int64_t i) {
      const int64_t first = i * kStoreRows, last = first + kStoreRows;
      kernel.store(call, first, last < call.rows ? last : call.rows);
    });
  }

  const int group = call.heads / call.key_heads;
  const int64_t block = kQueries / group > 0 ? kQueries / group : 1;
  int64_t whole = 0, products = 0;
  for (const Sequence& s : all) {
    whole += (s.rows + block - 1) / block * call.key_heads;
    products += s.rows * s.keys * call.heads * call.dim;
  }
  const int threads = products < kSmall ? 1 : call.threads;
  const bool split = threads > 1 && whole <= 4 * threads;

  std::vector<AttendTask> tasks, merges;
  size_t floats = 0;
  for (size_t i = 0; i < all.size(); i++) {
    const Sequence& s = all[i];
    const int64_t chunks = (s.keys + kChunk - 1) / kChunk;
    // the last rows see the most keys: they go first
    for (int64_t blocks = (s.rows + block - 1) / block, b = blocks - 1; b >= 0; b--) {
      const int64_t rows = s.rows - b * block < block ? s.rows - b * block : block;
      const int heads = split ? (kHeads < call.key_heads ? kHeads : call.key_heads) : 1;
      for (int head = 0; head < call.key_heads; head += heads) {
        AttendTask task{static_cast<int64_t>(i), head, heads, b * block, rows, 0, chunks, nullptr};
        if (!split || chunks < 2) {
          tasks.push_back(task);
          continue;
        }
        task.partials = reinterpret_cast<float*>(floats);  // an offset until the memory is there
        floats += static_cast<size_t>(chunks) * heads * rows * group * (call.dim + 2);
        merges.push_back(task);
      }
    }
  }
  if (floats) {
    thread_local Partials partials;
    float* memory = partials.reserve(floats);
    for (AttendTask& merge : merges) {
      merge.partials = memory + reinterpret_cast<size_t>(merge.partials);
      const int64_t size = merge.rows * merge.key_heads * group * (call.dim + 2);
      const int64_t run = (merge.chunks + 4 * threads - 1) / (4 * threads);
      for (int64_t c = 0; c < merge.chunks; c += run) {
        AttendTask task = merge;
        task.first_chunk = c;
        task.chunks = merge.chunks - c < run ? merge.chunks - c : run;
        task.partials = merge.partials + c * size;
        tasks.push_back(task);
      }
    }
  }
  parallel(threads, static_cast<int64_t>(tasks.size()),
           [&](int64_t i) { kernel.attend(call, all[tasks[i].sequence], tasks[i]); });
  parallel(threads, static_cast<int64_t>(merges.size()),
           [&](int64_t i) { kernel.merge(call, all[merges[i].sequence], merges[i]); });
}
