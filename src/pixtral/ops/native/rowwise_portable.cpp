// Norms and rotary embeddings, compiled for portable.
#include "rowwise.h"

namespace px {

const RowwiseKernels rowwise_portable = {norm_row, rotate_row, add_run};

}  // namespace px
