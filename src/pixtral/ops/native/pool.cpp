// The pool's threads wait actively for a moment after a call, since decoding calls again within microseconds, and
// then sleep, so that they do not take the processor from PyTorch's own threads.
//
// A call is a round. Its caller opens a gate, works on tasks like everyone else, and when no task is left closes the
// gate and waits for those who are inside. It does not wait for a thread that sleeps, or is held up on its core by a
// thread of PyTorch's that still waits actively.
#include "pool.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif
#if !defined(_WIN32)
#include <pthread.h>
#endif

namespace px {

namespace {

constexpr auto kActiveWait = std::chrono::microseconds(100);
constexpr int kSpins = 256;  // between two looks at the clock
constexpr int64_t kClosed = int64_t{1} << 32;

inline void relax() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

thread_local bool inside = false;

class Pool {
 public:
  void run(int threads, int64_t tasks, const Body& body) {
    grow(threads - 1);
    body_ = &body;
    tasks_ = tasks;
    next_.store(0, std::memory_order_relaxed);
    wanted_.store(threads - 1, std::memory_order_relaxed);
    gate_.fetch_sub(kClosed, std::memory_order_release);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      round_.fetch_add(1, std::memory_order_release);
    }
    if (sleeping_.load(std::memory_order_acquire) > 0) wake_.notify_all();
    work();
    gate_.fetch_add(kClosed, std::memory_order_acq_rel);
    for (int spins = 0; gate_.load(std::memory_order_acquire) != kClosed; spins++) {
      relax();
      if (spins > 16 * kSpins) std::this_thread::yield();  // who is inside may have lost its processor
    }
  }

 private:
  void grow(int count) {
    try {
      while (static_cast<int>(workers_.size()) < count) {
        const int index = static_cast<int>(workers_.size());
        workers_.emplace_back([this, index] { loop(index); });
      }
    } catch (const std::system_error&) {  // the system gives no more threads: those that there are do the work
    }
  }

  void work() {
    inside = true;
    for (int64_t task; (task = next_.fetch_add(1, std::memory_order_relaxed)) < tasks_;) (*body_)(task);
    inside = false;
  }

  bool called(int index, uint64_t seen) const {
    return round_.load(std::memory_order_acquire) != seen && index < wanted_.load(std::memory_order_relaxed);
  }

  void loop(int index) {
    uint64_t seen = 0;
    for (;;) {
      const auto begin = std::chrono::steady_clock::now();
      for (int spins = 1; !called(index, seen); spins++) {
        relax();
        if (spins % kSpins == 0 && std::chrono::steady_clock::now() - begin > kActiveWait) {
          std::unique_lock<std::mutex> lock(mutex_);
          sleeping_.fetch_add(1, std::memory_order_acq_rel);
          wake_.wait(lock, [&] { return called(index, seen); });
          sleeping_.fetch_sub(1, std::memory_order_acq_rel);
        }
      }
      seen = round_.load(std::memory_order_acquire);
      // the round may be over already: then the gate is closed, or opened anew for a round that is as good
      if (gate_.fetch_add(1, std::memory_order_acq_rel) < kClosed) work();
      gate_.fetch_sub(1, std::memory_order_release);
    }
  }

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> round_{0};
  std::atomic<int> sleeping_{0};
  std::atomic<int> wanted_{0};  // threads beside the caller's in this round
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<int64_t> gate_{kClosed};  // threads inside, and kClosed when no more may enter
  const Body* body_ = nullptr;
  int64_t tasks_ = 0;
};

std::mutex owner;      // held by the one call that uses the pool
Pool* pool = nullptr;  // never destroyed: its threads wait until the process ends

#if !defined(_WIN32)
// Threads do not survive fork(): the child starts with a pool of its own.
void in_child() {
  pool = nullptr;
  new (&owner) std::mutex;
}
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, in_child);
#endif

}  // namespace

void parallel(int threads, int64_t tasks, Body body) {
  std::unique_lock<std::mutex> lock(owner, std::defer_lock);
  if (threads <= 1 || tasks <= 1 || inside || !lock.try_lock()) {
    for (int64_t task = 0; task < tasks; task++) body(task);
    return;
  }
  if (pool == nullptr) pool = new Pool;
  pool->run(threads, tasks, body);
}

}  // namespace px
