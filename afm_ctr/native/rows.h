// What the ops on a table's rows share: refusals, threads, and who adds up which rows.
#ifndef AFM_CTR_NATIVE_ROWS_H_
#define AFM_CTR_NATIVE_ROWS_H_

#include <algorithm>
#include <cstdint>
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

template <typename Work>
void Parallel(tensorflow::OpKernelContext* context, int64_t units, int64_t cycles, const Work& work) {
  const auto* threads = context->device()->tensorflow_cpu_worker_threads();
  tensorflow::Shard(threads->num_threads, threads->workers, units, cycles, [&](int64_t begin, int64_t end) {
    // The threads of the pool flush denormal numbers to zero; whoever calls must do the same.
    const tensorflow::port::ScopedFlushDenormal flush;
    work(begin, end);
  });
}

// Sums by row, each in the order of the batch whatever the number of threads: every part adds the rows of some blocks
// of 64, in turn since the frequent rows come first.
class RowParts {
 public:
  // Of n summands of some cycles each.
  RowParts(tensorflow::OpKernelContext* context, int64_t n, int64_t cycles) {
    const auto* threads = context->device()->tensorflow_cpu_worker_threads();
    while (2 * count <= std::min<int64_t>(threads->num_threads, n * cycles / 16384)) count *= 2;
  }

  bool Has(int64_t part, int64_t row) const { return ((row >> 6) & (count - 1)) == part; }

  // The summands of a part in their order, found without a branch that could not be foretold; how many. -1 if a
  // position is outside [0, rows).
  int64_t Summands(int64_t part, const int64_t* position, int64_t n, int64_t rows, std::vector<int32_t>* mine) const {
    mine->resize(n + 1);
    int64_t found = 0;
    bool wrong = false;
    for (int64_t i = 0; i < n; i++) {
      (*mine)[found] = static_cast<int32_t>(i);
      found += Has(part, position[i]);
      wrong |= position[i] < 0 || position[i] >= rows;
    }
    return wrong ? -1 : found;
  }

  int64_t count = 1;
};

}  // namespace afm_ctr

#endif  // AFM_CTR_NATIVE_ROWS_H_
