// The thread pool: every task runs once, with any number of threads, from several threads at once, nested, after fork().
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>
#include <vector>

#include "../../src/pixtral/ops/native/pool.h"
#include "check.h"

namespace {

void check_rounds(int rounds) {
  for (int round = 0; round < rounds; round++) {
    std::vector<int> runs(round % 37);
    px::parallel(1 + round % 5, static_cast<int64_t>(runs.size()), [&](int64_t task) { runs[task]++; });
    for (const int count : runs) CHECK(count == 1, "a task ran %d times", count);
  }
}

void check_together() {
  std::atomic<int64_t> ran{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; caller++) {
    callers.emplace_back([&] {
      for (int round = 0; round < 300; round++) {
        px::parallel(3, 10, [&](int64_t) {
          ran++;
          px::parallel(2, 3, [&](int64_t) { ran++; });
        });
      }
    });
  }
  for (auto& caller : callers) caller.join();
  CHECK(ran == 4 * 300 * 10 * 4, "%d tasks ran", int(ran));
}

}  // namespace

void check_pool() {
  check_rounds(3000);
  check_together();
#ifndef CHECK_WITHOUT_FORK
  const pid_t child = fork();
  if (child == 0) {
    check_rounds(100);
    _exit(0);
  }
  int status = 1;
  waitpid(child, &status, 0);
  CHECK(status == 0, "the child process ended with %d", status);
#endif
}
