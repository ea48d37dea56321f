// Attention with AVX2.
#ifdef PX_X86
#include "attend_stored_avx2.h"

#include "attend_engine.h"

namespace px {

const AttendKernels attend_avx2 = {store_rows, attend, merge_task};

}  // namespace px
#endif
