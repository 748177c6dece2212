#define AFM_LANES 4
#define AFM_KERNEL kernel_baseline
#define AFM_NAME "baseline"
#define AFM_SUPPORTED true
#include "kernel.h"
