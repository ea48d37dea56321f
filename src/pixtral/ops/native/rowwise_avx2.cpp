// Norms and rotary embeddings, compiled for AVX2.
#ifdef PX_X86
#include "vectors_avx2.h"

#include "rowwise_norm.h"

namespace px {

const RowwiseKernels rowwise_avx2 = {norm_vectors, rotate_row, add_run};

}  // namespace px
#endif
