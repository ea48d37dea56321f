// Products of bfloat16 with AVX2, as float32.
#ifdef PX_X86
#include "vectors_avx2.h"

#include "dense_singles.h"

namespace px {

// In the first cache 24 KB of activations, in the second 128 KB of weights: what is read from there is a sixth as much.
const DenseKernels dense_avx2 = dense_kernels<DenseSingles<256, 32, 8>>();

}  // namespace px
#endif
