// Products of bfloat16 with AVX-512 where it multiplies float32 only.
#ifdef PX_X86
#include "vectors_avx512.h"

#include "dense_singles.h"

namespace px {

const DenseKernels dense_avx512 = dense_kernels<DenseSingles<512>>();  // of weights 16 KB, of activations 96 KB a panel

}  // namespace px
#endif
