// Which instruction set the kernels use on this machine.
#pragma once

namespace px {

// Avx512 has VNNI; Avx512Bf16 products of bfloat16 as well.
enum class Isa : int { Portable = 0, Avx2 = 1, Avx512 = 2, Avx512Bf16 = 3 };

// The best one that the CPU reports and this library was built for.
Isa best_isa();

// The one in use: the best, or a lower one that `px_set_isa` chose.
Isa isa();

}  // namespace px
