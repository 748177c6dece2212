// The op that writes records: the arrays of some rows to tf.train.Examples in their frames.
//
// The bytes are those of afm_ctr/records/example.py, which describes them and writes them where this op is not there.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "crc32c.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "records are little endian, and are written as they lie");

namespace afm_ctr {
namespace {

using namespace tensorflow;  // NOLINT: the names of every op

constexpr size_t kLongest = 10;  // bytes of a base-128 number
// Feature.kind of tensorflow/core/example/feature.proto: field number and wire type 2 in one byte.
constexpr uint8_t kBytes = 0x0A, kFloat = 0x12, kInt64 = 0x1A;

size_t varint_size(uint64_t value) {
  size_t size = 1;
  for (; value > 0x7F; value >>= 7) size++;
  return size;
}

uint8_t* put_varint(uint8_t* to, uint64_t value) {
  for (; value > 0x7F; value >>= 7) *to++ = static_cast<uint8_t>(value) | 0x80;
  *to++ = static_cast<uint8_t>(value);
  return to;
}

uint8_t* put(uint8_t* to, const void* bytes, size_t size) {
  if (size) memcpy(to, bytes, size);
  return to + size;
}

// A length-delimited field 1 or 2 of `size` bytes: its tag and its length.
uint8_t* put_head(uint8_t* to, uint8_t tag, size_t size) {
  *to++ = tag;
  return put_varint(to, size);
}

size_t with_head(size_t size) { return 1 + varint_size(size) + size; }

// A map entry: name -> Feature with a list of `size` bytes.
size_t entry_size(const char* name, size_t size) {
  return with_head(with_head(strlen(name)) + with_head(with_head(with_head(size))));
}

// All of an entry that comes before its payload. Three messages are in one another: Feature, its list, the values.
uint8_t* put_entry(uint8_t* to, const char* name, uint8_t kind, size_t size) {
  const size_t length = strlen(name), list = with_head(size), feature = with_head(list);
  to = put_head(to, 0x0A, with_head(length) + with_head(feature));
  to = put(put_head(to, 0x0A, length), name, length);
  to = put_head(to, 0x12, feature);
  to = put_head(to, kind, list);
  return put_head(to, 0x0A, size);
}

class FrameExamplesOp : public OpKernel {
 public:
  explicit FrameExamplesOp(OpKernelConstruction* construction)
      : OpKernel(construction), crc_(find_crc32c(false)) {}

  void Compute(OpKernelContext* context) override {
    const Tensor &ids = context->input(0), &values = context->input(1), &text = context->input(6);
    const int64_t rows = context->input(7).NumElements();
    bool sane = text.dims() == 1 && ids.dims() == 2 && ids.dim_size(0) == rows && ids.dim_size(1) > 0 &&
                values.shape() == ids.shape() && context->input(4).shape() == context->input(5).shape() &&
                context->input(7).dims() == 1 && context->input(7).shape() == context->input(8).shape();
    for (int i = 2; i < 6; i++) {  // of size 0: no row has it
      const Tensor& column = context->input(i);
      sane &= column.dims() == 1 && (column.NumElements() == 0 || column.NumElements() == rows);
    }
    OP_REQUIRES(context, sane, absl::InvalidArgumentError("frames: the columns do not fit each other"));
    const int64_t slots = ids.dim_size(1);
    const auto some = [&](int i, auto* type) {
      return context->input(i).NumElements() ? context->input(i).flat<std::decay_t<decltype(*type)>>().data() : nullptr;
    };
    const float *const label = some(2, static_cast<float*>(nullptr)), *const weight = some(3, static_cast<float*>(nullptr));
    const int64_t* const group = some(4, static_cast<int64_t*>(nullptr));
    const bool* const has_group = some(5, static_cast<bool*>(nullptr));
    const int64_t* const id = ids.flat<int64_t>().data();
    const float* const value = values.flat<float>().data();
    const uint8_t* const keys = text.flat<uint8_t>().data();
    const auto key_starts = context->input(7).vec<int64_t>(), key_ends = context->input(8).vec<int64_t>();

    size_t room = 0;
    for (int64_t row = 0; row < rows; row++) {
      sane &= 0 <= key_starts(row) && key_starts(row) <= key_ends(row) && key_ends(row) <= text.NumElements();
      room += kHeader + kFooter + 256 + slots * (kLongest + sizeof(float)) + (key_ends(row) - key_starts(row));
    }
    OP_REQUIRES(context, sane, absl::InvalidArgumentError("frames: a key is outside its text"));
    Tensor buffer, *sizes;
    OP_REQUIRES_OK(context, context->allocate_temp(DT_UINT8, TensorShape({static_cast<int64_t>(room)}), &buffer));
    OP_REQUIRES_OK(context, context->allocate_output(1, TensorShape({rows}), &sizes));
    uint8_t *const begin = buffer.flat<uint8_t>().data(), *to = begin;
    std::vector<uint8_t> packed(slots * kLongest);
    std::vector<uint8_t*> records(rows);
    for (int64_t row = 0; row < rows; row++) {
      uint8_t* end = packed.data();
      for (int64_t slot = 0; slot < slots; slot++) end = put_varint(end, id[row * slots + slot]);
      const size_t ids_size = end - packed.data(), values_size = slots * sizeof(float),
                   key_size = key_ends(row) - key_starts(row);
      const bool grouped = group && has_group[row], labelled = label && !std::isnan(label[row]);
      size_t all = entry_size("feature_ids", ids_size) + entry_size("feature_vals", values_size);
      if (grouped) all += entry_size("group", varint_size(group[row]));
      all += entry_size("key", key_size);
      if (labelled) all += entry_size("label", sizeof(float));
      if (weight) all += entry_size("weight", sizeof(float));

      const uint64_t size = with_head(all);
      records[row] = to + kHeader;
      to = put(to, &size, sizeof size);
      const uint32_t check = masked(crc_.one(to - sizeof size, sizeof size));
      to = put(to, &check, sizeof check);
      to = put_head(to, 0x0A, all);
      to = put(put_entry(to, "feature_ids", kInt64, ids_size), packed.data(), ids_size);
      to = put(put_entry(to, "feature_vals", kFloat, values_size), value + row * slots, values_size);
      if (grouped) to = put_varint(put_entry(to, "group", kInt64, varint_size(group[row])), group[row]);
      to = put(put_entry(to, "key", kBytes, key_size), keys + key_starts(row), key_size);
      if (labelled) to = put(put_entry(to, "label", kFloat, sizeof(float)), label + row, sizeof(float));
      if (weight) to = put(put_entry(to, "weight", kFloat, sizeof(float)), weight + row, sizeof(float));
      sizes->flat<int64_t>()(row) = to + kFooter - records[row] + kHeader;
      to += kFooter;
    }
    for (int64_t row = 0; row < rows; row += kTogether) {
      const uint8_t* starts[kTogether];
      size_t lengths[kTogether];
      uint32_t crcs[kTogether];
      const int count = std::min<int64_t>(kTogether, rows - row);
      for (int n = 0; n < kTogether; n++) {
        const int64_t at = row + std::min(n, count - 1);
        starts[n] = records[at];
        lengths[n] = sizes->flat<int64_t>()(at) - kHeader - kFooter;
      }
      crc_.several(starts, lengths, crcs);
      for (int n = 0; n < count; n++) {
        const uint32_t check = masked(crcs[n]);
        put(records[row + n] + lengths[n], &check, sizeof check);
      }
    }
    context->set_output(0, buffer.Slice(0, to - begin));
  }

 private:
  const Crc32c crc_;
};

REGISTER_OP("AfmCtrFrameExamples")
    .Input("feature_ids: int64")
    .Input("feature_vals: float")
    .Input("label: float")
    .Input("weight: float")
    .Input("group: int64")
    .Input("has_group: bool")
    .Input("key_text: uint8")
    .Input("key_starts: int64")
    .Input("key_ends: int64")
    .Output("frames: uint8")
    .Output("sizes: int64")
    .SetShapeFn(shape_inference::UnknownShape);

REGISTER_KERNEL_BUILDER(Name("AfmCtrFrameExamples").Device(DEVICE_CPU), FrameExamplesOp);

}  // namespace
}  // namespace afm_ctr
