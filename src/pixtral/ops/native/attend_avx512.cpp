// Attention with AVX-512 and VNNI; bfloat16 is multiplied as float32.
#ifdef PX_X86
#include "attend_stored_avx512.h"

#include "attend_engine.h"

namespace px {

const AttendKernels attend_avx512 = {store_rows, attend, merge_task};

}  // namespace px
#endif
