// Runs all checks with every instruction set that the CPU has; the sanitizers that this was built with end it where
// something is wrong.
#include "check.h"

int main() {
  Random random(0);
  check_pool();
  check_linear(random);
  check_pack(random);
  for (int isa = px_best_isa(); isa >= 0; isa--) {
    px_set_isa(isa);
    check_attend(random);
    check_dense(random);
  }
  std::puts("all checks passed");
}
