// The op that reads records: stretches of shards to the arrays of a batch.
//
// It takes what is plainly right and leaves all else to the reader in Python, which reads the same batch again, names
// what is wrong, or knows better. So there is one wording of every error, and no message is made here.
#include <fcntl.h>
#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "crc32c.h"
#include "example.h"
#include "order.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/platform/denormal.h"
#include "tensorflow/core/util/work_sharder.h"

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "records are little endian, and are read as they lie");

namespace afm_ctr {
namespace {

using namespace tensorflow;  // NOLINT: the names of every op

constexpr int64_t kCyclesOfRow = 2000;  // about; for cutting the work into parts

// A file that is open for reading, and memory for a stretch of it. For one thread.
class File {
 public:
  ~File() { Close(); }

  // The bytes [start, stop) of a file, and kSlack more; null if they cannot be had.
  const uint8_t* Read(const std::string& path, int64_t start, int64_t stop) {
    if (descriptor_ < 0 || path_ != path) {
      Close();
      path_ = path;
      descriptor_ = open(path_.c_str(), O_RDONLY | O_CLOEXEC);
      if (descriptor_ < 0) return nullptr;
    }
    const int64_t size = stop - start;
    if (size > size_) {
      memory_.reset(new (std::nothrow) uint8_t[size + kSlack]());
      size_ = memory_ ? size : 0;
      if (!memory_) return nullptr;
    }
    for (int64_t done = 0; done < size;) {
      const ssize_t got = pread(descriptor_, memory_.get() + done, size - done, start + done);
      if (got == 0 || (got < 0 && errno != EINTR)) return nullptr;
      done += std::max<ssize_t>(got, 0);
    }
    return memory_.get();
  }

 private:
  void Close() {
    if (descriptor_ >= 0) close(descriptor_);
    descriptor_ = -1;
  }

  int descriptor_ = -1;
  std::string path_;
  std::unique_ptr<uint8_t[]> memory_;
  int64_t size_ = 0;
};

uint32_t word(const uint8_t* at) {
  uint32_t value;
  memcpy(&value, at, sizeof value);
  return value;
}

// Where each of the records of a block begins, and its end; false if the frames do not fill the block exactly.
bool find_frames(const uint8_t* data, int64_t size, int64_t count, Crc32c crc, std::vector<int64_t>* edges) {
  edges->clear();
  int64_t at = 0;
  for (int64_t record = 0; record < count; record++) {
    if (size - at < kHeader + kFooter) return false;
    uint64_t length;
    memcpy(&length, data + at, sizeof length);
    if (masked(crc.one(data + at, sizeof length)) != word(data + at + sizeof length)) return false;
    if (length > static_cast<uint64_t>(size - at - kHeader - kFooter)) return false;
    edges->push_back(at);
    at += kHeader + static_cast<int64_t>(length) + kFooter;
  }
  edges->push_back(at);
  return at == size;
}

class ReadRecordsOp : public OpKernel {
 public:
  explicit ReadRecordsOp(OpKernelConstruction* construction) : OpKernel(construction) {
    OP_REQUIRES_OK(construction, construction->GetAttr("rows", &rows_));
    OP_REQUIRES_OK(construction, construction->GetAttr("slots", &contract_.slots));
    OP_REQUIRES_OK(construction, construction->GetAttr("feature_size", &contract_.feature_size));
    OP_REQUIRES_OK(construction, construction->GetAttr("labelled", &contract_.labelled));
    OP_REQUIRES_OK(construction, construction->GetAttr("binary", &contract_.binary));
    OP_REQUIRES_OK(construction, construction->GetAttr("with_groups", &groups_));
    OP_REQUIRES_OK(construction, construction->GetAttr("with_keys", &keys_));
    OP_REQUIRES_OK(construction, construction->GetAttr("portable", &contract_.portable));
    crc_ = find_crc32c(contract_.portable);
  }

  void Compute(OpKernelContext* context) override {
    const Tensor &paths = context->input(0), &stretches = context->input(1), &keys = context->input(2);
    const int64_t files = paths.NumElements(), blocks = stretches.dims() == 2 ? stretches.dim_size(0) : 0;
    OP_REQUIRES(context,
                paths.dims() == 1 && stretches.shape() == TensorShape({blocks, 6}) &&
                    (keys.NumElements() == 0 || keys.shape() == TensorShape({blocks, 2})),
                absl::InvalidArgumentError("records: paths must be [f], stretches [n, 6] and keys [n, 2] or empty"));
    const auto block = stretches.matrix<int64_t>();
    const uint64_t* const key = keys.NumElements() ? keys.flat<uint64_t>().data() : nullptr;
    std::vector<int64_t> first(blocks + 1, 0);  // rows of the batch before a block
    bool sane = true;
    for (int64_t b = 0; b < blocks; b++) {
      sane &= block(b, 0) >= 0 && block(b, 0) < files && block(b, 1) >= 0 && block(b, 2) >= block(b, 1);
      sane &= block(b, 4) >= 0 && block(b, 5) >= block(b, 4) && block(b, 3) >= block(b, 5);
      first[b + 1] = first[b] + (block(b, 5) - block(b, 4));
      sane &= first[b + 1] <= rows_ && block(b, 3) <= block(b, 2) - block(b, 1);
    }
    OP_REQUIRES(context, sane, absl::InvalidArgumentError("records: there are no such stretches"));
    Batch batch;
    if (!Allocate(context, &batch)) return;
    std::atomic<bool> good{true};
    auto some = [&](int64_t begin, int64_t end) {
      const port::ScopedDontFlushDenormal exact;  // the threads of the pool would take a weight of -1e-40 for 0
      File file;
      Permutation permutation;
      std::vector<int64_t> edges;
      for (int64_t b = begin; b < end && good; b++) {
        const int64_t start = block(b, 1), stop = block(b, 2), records = block(b, 3);
        const uint8_t* const data = file.Read(paths.flat<tstring>()(block(b, 0)), start, stop);
        if (data == nullptr || !find_frames(data, stop - start, records, crc_, &edges)) {
          good = false;
          return;
        }
        const uint32_t* const order = key ? permutation.Make(records, key + 2 * b) : nullptr;
        for (int64_t place = block(b, 4), row = first[b]; place < block(b, 5) && good; place += kTogether) {
          const uint8_t* begins[kTogether];
          size_t sizes[kTogether];
          uint32_t crcs[kTogether];
          const int count = std::min<int64_t>(kTogether, block(b, 5) - place);
          for (int n = 0; n < kTogether; n++) {
            const int64_t at = place + std::min(n, count - 1), record = order ? order[at] : at;
            begins[n] = data + edges[record] + kHeader;
            sizes[n] = data + edges[record + 1] - kFooter - begins[n];
          }
          crc_.several(begins, sizes, crcs);
          for (int n = 0; n < count; n++, row++)
            if (masked(crcs[n]) != word(begins[n] + sizes[n]) || !Parse(begins[n], sizes[n], row, batch)) good = false;
        }
      }
    };
    const auto* threads = context->device()->tensorflow_cpu_worker_threads();
    const int64_t cycles = kCyclesOfRow * (first[blocks] / std::max<int64_t>(blocks, 1) + 1);
    Shard(threads->num_threads, threads->workers, blocks, cycles, some);
    *batch.good = good;
    if (good) Pad(first[blocks], batch);
  }

 private:
  // The outputs, [rows, slots] or [rows]; of size 0 where they are not wanted.
  struct Batch {
    int64_t* ids;
    float *values, *label, *weight;
    int64_t* group;
    bool* has_group;
    tstring* key;
    bool* good;
  };

  bool Allocate(OpKernelContext* context, Batch* batch) const {
    const int64_t grouped = groups_ ? rows_ : 0, keyed = keys_ ? rows_ : 0;
    const TensorShape shapes[] = {{rows_, contract_.slots}, {rows_, contract_.slots}, {rows_}, {rows_}, {grouped},
                                  {grouped}, {keyed}, {}};
    Tensor* outputs[8];
    for (int i = 0; i < 8; i++) {
      const absl::Status status = context->allocate_output(i, shapes[i], &outputs[i]);
      if (!status.ok()) {
        context->CtxFailure(status);
        return false;
      }
    }
    *batch = {outputs[0]->flat<int64_t>().data(), outputs[1]->flat<float>().data(),
              outputs[2]->flat<float>().data(),   outputs[3]->flat<float>().data(),
              outputs[4]->flat<int64_t>().data(), outputs[5]->flat<bool>().data(),
              outputs[6]->flat<tstring>().data(), outputs[7]->flat<bool>().data()};
    return true;
  }

  bool Parse(const uint8_t* record, size_t size, int64_t row, const Batch& batch) const {
    Row found{batch.ids + row * contract_.slots, batch.values + row * contract_.slots};
    if (!parse_example(record, size, contract_, &found)) return false;
    batch.label[row] = found.label;
    batch.weight[row] = found.weight;
    if (groups_) {
      batch.group[row] = found.group;
      batch.has_group[row] = found.has_group;
    }
    if (keys_) batch.key[row].assign(reinterpret_cast<const char*>(found.key), found.key_size);
    return true;
  }

  // Rows that no record fills: zeros, no group, key "" (which a new string is).
  void Pad(int64_t from, const Batch& batch) const {
    const int64_t missing = rows_ - from, slots = contract_.slots;
    std::fill_n(batch.ids + from * slots, missing * slots, 0);
    std::fill_n(batch.values + from * slots, missing * slots, 0.0f);
    std::fill_n(batch.label + from, missing, 0.0f);
    std::fill_n(batch.weight + from, missing, 0.0f);
    if (groups_) {
      std::fill_n(batch.group + from, missing, 0);
      std::fill_n(batch.has_group + from, missing, false);
    }
  }

  int64_t rows_ = 0;
  Contract contract_{};
  bool groups_ = false, keys_ = false;
  Crc32c crc_{};
};

// A block is a stretch of a file: which file, its first byte, the byte behind its last, how many records it holds, and
// which of them, [from, to), in the order that its key makes; in file order without keys. Stateful: a file may change.
REGISTER_OP("AfmCtrReadRecords")
    .Input("paths: string")
    .Input("stretches: int64")
    .Input("keys: uint64")
    .Attr("rows: int >= 0")
    .Attr("slots: int >= 1")
    .Attr("feature_size: int >= 1")
    .Attr("labelled: bool")
    .Attr("binary: bool")
    .Attr("with_groups: bool")
    .Attr("with_keys: bool")
    .Attr("portable: bool = false")
    .Output("feature_ids: int64")
    .Output("feature_vals: float")
    .Output("label: float")
    .Output("weight: float")
    .Output("group: int64")
    .Output("has_group: bool")
    .Output("key: string")
    .Output("good: bool")
    .SetIsStateful()
    .SetShapeFn(shape_inference::UnknownShape);

REGISTER_KERNEL_BUILDER(Name("AfmCtrReadRecords").Device(DEVICE_CPU), ReadRecordsOp);

}  // namespace
}  // namespace afm_ctr
