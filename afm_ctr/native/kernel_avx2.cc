#define AFM_LANES 8
#define AFM_KERNEL kernel_avx2
#define AFM_NAME "avx2"
#define AFM_SUPPORTED (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
#include "kernel.h"
