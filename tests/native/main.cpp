// Runs all checks; the sanitizers that this was built with end it where something is wrong.
#include "check.h"

int main() {
  Random random(0);
  check_pool();
  check_linear(random);
  check_dense(random);
  check_pack(random);
  std::puts("all checks passed");
}
