// The pool's threads wait actively for a moment after a call, since decoding calls again within microseconds, and
// then sleep, so that they do not take the processor from PyTorch's own threads.
#include "pool.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
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
  ~Pool() { stop(); }

  void run(int threads, int64_t tasks, const Body& body) {
    resize(threads - 1);
    body_ = &body;
    tasks_ = tasks;
    next_.store(0, std::memory_order_relaxed);
    busy_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      round_.fetch_add(1, std::memory_order_release);
    }
    if (sleeping_.load(std::memory_order_acquire) > 0) wake_.notify_all();
    work();
    while (busy_.load(std::memory_order_acquire) != 0) relax();
  }

 private:
  void work() {
    inside = true;
    for (int64_t task; (task = next_.fetch_add(1, std::memory_order_relaxed)) < tasks_;) (*body_)(task);
    inside = false;
  }

  void loop(uint64_t seen) {
    for (;;) {
      const auto begin = std::chrono::steady_clock::now();
      int spins = 0;
      while (round_.load(std::memory_order_acquire) == seen) {
        relax();
        if (++spins % 256 == 0 && std::chrono::steady_clock::now() - begin > kActiveWait) {
          std::unique_lock<std::mutex> lock(mutex_);
          sleeping_.fetch_add(1, std::memory_order_acq_rel);
          wake_.wait(lock, [&] { return round_.load(std::memory_order_acquire) != seen; });
          sleeping_.fetch_sub(1, std::memory_order_acq_rel);
        }
      }
      seen = round_.load(std::memory_order_acquire);
      if (stopping_.load(std::memory_order_acquire)) return;
      work();
      busy_.fetch_sub(1, std::memory_order_release);
    }
  }

  void resize(int count) {
    if (count == static_cast<int>(workers_.size())) return;
    stop();
    const uint64_t seen = round_.load();
    for (int i = 0; i < count; i++) workers_.emplace_back([this, seen] { loop(seen); });
  }

  void stop() {
    stopping_.store(true, std::memory_order_release);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      round_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
    workers_.clear();
    stopping_.store(false, std::memory_order_release);
  }

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> round_{0};
  std::atomic<int> sleeping_{0};
  std::atomic<bool> stopping_{false};
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<int> busy_{0};
  const Body* body_ = nullptr;
  int64_t tasks_ = 0;
};

std::mutex owner;           // held by the one call that uses the pool
Pool* pool = nullptr;       // never destroyed: its threads may outlive static destructors

#if !defined(_WIN32)
// Threads do not survive fork(): the child starts with a pool of its own.
void in_child() {
  pool = nullptr;
  new (&owner) std::mutex;
}
const int registered = pthread_atfork(nullptr, nullptr, in_child);
#endif

}  // namespace

void parallel(int threads, int64_t tasks, Body body) {
  if (threads > tasks) threads = static_cast<int>(tasks);
  std::unique_lock<std::mutex> lock(owner, std::defer_lock);
  if (threads <= 1 || inside || !lock.try_lock()) {
    for (int64_t task = 0; task < tasks; task++) body(task);
    return;
  }
  if (pool == nullptr) pool = new Pool;
  pool->run(threads, tasks, body);
}

}  // namespace px
