#define AFM_LANES 16
#define AFM_KERNEL kernel_avx512
#define AFM_NAME "avx512"
#define AFM_SUPPORTED \
  (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") && \
   __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma"))
#include "kernel.h"
