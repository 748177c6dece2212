// The optimizers' rules, element by element, for CPUs and for GPUs: see their classes in Python for what they compute and
// why. That of kByRow has a second form, for a slot of one number a row.
//
// Both compilers round each operation: -ffp-contract=off, --fmad=false. So both give the same bits.
#ifndef AFM_CTR_RULES_H_
#define AFM_CTR_RULES_H_

#ifdef __CUDACC_RTC__  // which has no headers
#define AFM_CTR_DEVICE __device__
#else
#include <math.h>
#define AFM_CTR_DEVICE
#endif

namespace afm_ctr {

typedef long long Place;

struct Sgd {
  static constexpr bool kByRow = false;
  static constexpr int kSlots = 0, kOptions = 1;  // rate
  AFM_CTR_DEVICE static void Step(const float* o, float g, float* w, float**, Place) { *w = *w - o[0] * g; }
};

struct Adagrad {
  static constexpr bool kByRow = true;
  static constexpr int kSlots = 1, kOptions = 2;  // rate, epsilon
  AFM_CTR_DEVICE static void Step(const float* o, float g, float* w, float** slots, Place j) {
    const float sum = slots[0][j] + g * g;
    slots[0][j] = sum;
    *w = *w - o[0] * g / sqrtf(sum + o[1]);
  }
  AFM_CTR_DEVICE static void StepRow(const float* o, const float* g, float* w, float* slot, Place width) {
    float squares = 0;
    for (Place j = 0; j < width; j++) squares += g[j] * g[j];
    *slot = *slot + squares / width;
    const float root = sqrtf(*slot + o[1]);
    for (Place j = 0; j < width; j++) w[j] = w[j] - o[0] * g[j] / root;
  }
};

struct Adam {
  static constexpr bool kByRow = false;
  static constexpr int kSlots = 2, kOptions = 4;  // rate with its correction, 1 - beta_1, 1 - beta_2, epsilon
  AFM_CTR_DEVICE static void Step(const float* o, float g, float* w, float** slots, Place j) {
    const float m = slots[0][j] + (g - slots[0][j]) * o[1];
    const float v = slots[1][j] + (g * g - slots[1][j]) * o[2];
    slots[0][j] = m;
    slots[1][j] = v;
    *w = *w - o[0] * m / (sqrtf(v) + o[3]);
  }
};

struct Ftrl {
  static constexpr bool kByRow = false;
  static constexpr int kSlots = 2, kOptions = 4;  // rate, beta, rate · l1, rate · l2
  AFM_CTR_DEVICE static void Step(const float* o, float g, float* w, float** slots, Place j) {
    const float before = slots[0][j], after = before + g * g, root = sqrtf(after);
    float z = before > 0 ? slots[1][j] : -o[1] * *w;
    z += o[0] * g - (root - sqrtf(before)) * *w;
    const float low = o[2] < z ? o[2] : z, clipped = low < -o[2] ? -o[2] : low, below = root + (o[1] + o[3]);
    const bool moves = g != 0 && after > 0;
    slots[0][j] = after;
    if (moves) {
      slots[1][j] = z;
      *w = below == 0 ? 0 : (clipped - z) / below;
    }
  }
};

}  // namespace afm_ctr

#endif  // AFM_CTR_RULES_H_
