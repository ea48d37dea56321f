// Norms and rotary embeddings, compiled for AVX-512.
#ifdef PX_X86
#include "vectors_avx512.h"

#include "rowwise_norm.h"

namespace px {

const RowwiseKernels rowwise_avx512 = {norm_vectors, rotate_row, add_run};

}  // namespace px
#endif
