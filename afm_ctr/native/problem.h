// What the op hands to a kernel, and the table of functions that a kernel is.
//
// Plain data only: the kernels are compiled with different instruction sets, and an inline function of a shared
// header would be compiled in each of them, of which the linker keeps any one.
#ifndef AFM_CTR_NATIVE_PROBLEM_H_
#define AFM_CTR_NATIVE_PROBLEM_H_

#include <cstddef>
#include <cstdint>

namespace afm_ctr {

constexpr int64_t kPairsBeyond = 16;

struct Problem {
  int64_t slots, k, t;
  int64_t pairs;
  const int32_t *i, *j;  // the slots of each pair, in [0, slots); kPairsBeyond zeros follow
  bool all_pairs;        // the pairs are all (i, j) with i < j, in this order
  const float* W;       // [k, t]
  const float* b;       // [t]
  const float* h;       // [t]
  bool scale_by_pairs;
  bool by_slot;  // pooled, and the gradient by it, are [rows, slots, k] and not [rows, k]
  // Dropout on the pair weights: dropped with probability threshold / 2^24, else multiplied; 0 is no dropout.
  int32_t threshold;
  float keep_scale;
  uint64_t base;

  const float* u;       // [rows, slots, k]
  const bool* present;  // [rows, slots]
  const int64_t* rows;  // [rows], read only with dropout
};

struct Kernel {
  const char* name;
  bool (*supported)();
  // Size of the workspace of one thread, in floats. It must begin at a multiple of 64 bytes.
  size_t (*workspace)(const Problem&);
  // Rows are computed in groups of so many, the last of which may be smaller; `begin` is where a group begins.
  int64_t rows;
  // How many floats of a group the forward pass may keep for the backward pass.
  int64_t (*kept)(const Problem&);
  // Rows [begin, end): pooled [rows, (slots,) k] and the logarithm of the softmax's denominator [rows]. kept, null or
  // [groups, kept(problem)], receives what the backward pass then need not compute again.
  void (*forward)(const Problem&, float* workspace, int64_t begin, int64_t end, float* pooled, float* lse,
                  float* kept);
  // Rows [begin, end) of du [rows, slots, k]; sums receives their dW [k, t], db [t] and dh [t], one after the other.
  void (*backward)(const Problem&, float* workspace, int64_t begin, int64_t end, const float* lse,
                   const float* kept, const float* dpooled, float* du, float* sums);
};

extern const Kernel kernel_avx512;
extern const Kernel kernel_avx2;
extern const Kernel kernel_baseline;

}  // namespace afm_ctr

#endif  // AFM_CTR_NATIVE_PROBLEM_H_
