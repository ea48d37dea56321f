// A small thread pool: tasks of one call are handed out one by one, so that a thread that is held up delays little.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

namespace px {

// A callable (int64_t task) that is borrowed, not owned.
class Body {
 public:
  template <class F, class = std::enable_if_t<!std::is_same_v<std::decay_t<F>, Body>>>
  Body(F&& f)  // NOLINT: implicit on purpose
      : object_(const_cast<void*>(static_cast<const void*>(&f))),
        call_([](void* object, int64_t task) { (*static_cast<std::remove_reference_t<F>*>(object))(task); }) {}
  void operator()(int64_t task) const { call_(object_, task); }

 private:
  void* object_;
  void (*call_)(void*, int64_t);
};

// Run body(0) ... body(tasks - 1) on up to `threads` threads, the caller's among them, and return when all are done.
// Tasks start in ascending order. A call from inside a task, or while another thread's call is running, runs inline.
void parallel(int threads, int64_t tasks, Body body);

}  // namespace px
