// Products of bfloat16 with AVX2, as float32.
#ifdef PX_X86
#include "vectors_avx2.h"

#include "dense_singles.h"

namespace px {

const DenseKernels dense_avx2 = dense_kernels<DenseSingles<512>>();  // of weights 8 KB, of activations 48 KB a panel

}  // namespace px
#endif
