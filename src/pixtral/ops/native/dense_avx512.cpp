// Products of bfloat16 with AVX-512 where it multiplies float32 only.
#ifdef PX_X86
#include "vectors_avx512.h"

#include "dense_singles.h"

namespace px {

// In the first cache 16 KB of weights, in the second 96 KB of activations for each panel.
const DenseKernels dense_avx512 = dense_kernels<DenseSingles<512, 1, 4>>();

}  // namespace px
#endif
