// What the ops on a table's rows share: refusals, threads, sums by row, and numbers a register at a time.
#ifndef AFM_CTR_NATIVE_ROWS_H_
#define AFM_CTR_NATIVE_ROWS_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/platform/denormal.h"
#include "tensorflow/core/util/work_sharder.h"

namespace afm_ctr {

template <typename... Parts>
absl::Status Refusal(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat("table: ", parts...));
}

// For a function that is compiled for wider registers too: the machine's are chosen as the library is loaded. Products are
// rounded before they are added (-ffp-contract=off), so all give the same bits.
#if defined(__x86_64__)
#define AFM_CTR_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define AFM_CTR_CLONES
#endif
#define AFM_CTR_INLINE inline __attribute__((always_inline))

typedef float Lanes __attribute__((vector_size(64)));
typedef float FewLanes __attribute__((vector_size(16)));

// From and to anywhere in memory.
template <typename Numbers>
AFM_CTR_INLINE Numbers Load(const float* from) {
  Numbers numbers;
  memcpy(&numbers, from, sizeof(numbers));
  return numbers;
}

template <typename Numbers>
AFM_CTR_INLINE void Store(float* to, Numbers numbers) {
  memcpy(to, &numbers, sizeof(numbers));
}

// Calls each(null, j) for all j in [0, n), as many at once as the type that the null points to has numbers.
template <typename Each>
AFM_CTR_INLINE void ByLanes(int64_t n, const Each& each) {
  int64_t j = 0;
  for (; j + 16 <= n; j += 16) each(static_cast<Lanes*>(nullptr), j);
  for (; j + 4 <= n; j += 4) each(static_cast<FewLanes*>(nullptr), j);
  for (; j < n; j++) each(static_cast<float*>(nullptr), j);
}

// sum[j] += factor · one[j].
AFM_CTR_INLINE void AddRow(float* sum, const float* one, float factor, int64_t width) {
  ByLanes(width, [=](auto* numbers, int64_t j) __attribute__((always_inline)) {
    using Numbers = std::remove_pointer_t<decltype(numbers)>;
    Store(sum + j, Load<Numbers>(sum + j) + Load<Numbers>(one + j) * factor);
  });
}

template <typename Work>
void Parallel(tensorflow::OpKernelContext* context, int64_t units, int64_t cycles, const Work& work) {
  const auto* threads = context->device()->tensorflow_cpu_worker_threads();
  tensorflow::Shard(threads->num_threads, threads->workers, units, cycles, [&](int64_t begin, int64_t end) {
    // The threads of the pool flush denormal numbers to zero; whoever calls must do the same.
    const tensorflow::port::ScopedFlushDenormal flush;
    work(begin, end);
  });
}

// A share of the rows of some sums: blocks of 64 in turn, since the frequent rows come first.
struct RowPart {
  int64_t part, parts;  // parts is a power of two

  bool Has(int64_t row) const { return ((row >> 6) & (parts - 1)) == part; }
};

// Sums by row, each in the order of the batch whatever the number of threads. Calls work(part, summands, how many) for
// every part of the rows, with those of the n summands that are of its rows, in their order; width is the numbers of a
// summand. False if a position is outside [0, rows).
template <typename Work>
bool AddByRow(tensorflow::OpKernelContext* context, const int64_t* position, int64_t n, int64_t rows, int64_t width,
              const Work& work) {
  const int64_t threads = context->device()->tensorflow_cpu_worker_threads()->num_threads;
  int64_t parts = 1;
  while (2 * parts <= std::min<int64_t>(threads, n * width / 16384)) parts *= 2;
  std::atomic<bool> outside{false};
  Parallel(context, parts, 2 * n + n * width / parts, [&](int64_t begin, int64_t end) {
    std::vector<int32_t> mine(n + 1);
    for (int64_t number = begin; number < end; number++) {
      const RowPart part{number, parts};
      int64_t found = 0;
      bool wrong = false;
      for (int64_t i = 0; i < n; i++) {  // without a branch that could not be foretold
        mine[found] = static_cast<int32_t>(i);
        found += part.Has(position[i]);
        wrong |= position[i] < 0 || position[i] >= rows;
      }
      if (wrong) {
        outside = true;
        return;
      }
      work(part, mine.data(), found);
    }
  });
  return !outside;
}

}  // namespace afm_ctr

#endif  // AFM_CTR_NATIVE_ROWS_H_
