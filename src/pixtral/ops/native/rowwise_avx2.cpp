// Norms and rotary embeddings, compiled for avx2.
#ifdef PX_X86
#include "rowwise.h"

namespace px {

const RowwiseKernels rowwise_avx2 = {norm_row, rotate_row, add_run};

}  // namespace px
#endif
