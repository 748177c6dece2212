// Ops on cells that lie in a text: numbers, hash buckets, and the cells as strings; and slots to rows.
//
// A batch is a text and where its cells are, starts and ends [n, width]. The numbers and buckets are those that
// TensorFlow's string ops give (afm_ctr/features/cell_ops.py), without a string a cell.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "number.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace util {
uint64_t Fingerprint64(const char* text, size_t size);  // farmhash, which TensorFlow's library has
}  // namespace util

namespace afm_ctr {
namespace {

using namespace tensorflow;  // NOLINT: the names of every op

constexpr int64_t kTogether = 64;  // rows; their cells stay in the cache for all columns

bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

// A column, or several that are joined; and the texts that count as an empty cell.
struct Source {
  std::vector<int> columns;
  std::vector<std::string> missing;
};

class CellsOp : public OpKernel {
 public:
  explicit CellsOp(OpKernelConstruction* construction) : OpKernel(construction) {
    std::vector<int> columns, parts, missings;
    std::vector<std::string> missing;
    OP_REQUIRES_OK(construction, construction->GetAttr("columns", &columns));
    OP_REQUIRES_OK(construction, construction->GetAttr("parts", &parts));
    OP_REQUIRES_OK(construction, construction->GetAttr("missing", &missing));
    OP_REQUIRES_OK(construction, construction->GetAttr("missings", &missings));
    size_t column = 0, text = 0;
    bool sane = parts.size() == missings.size();
    for (size_t i = 0; sane && i < parts.size(); i++) {
      sane = parts[i] > 0 && missings[i] >= 0 && column + parts[i] <= columns.size() &&
             text + missings[i] <= missing.size();
      if (!sane) break;
      sources_.push_back({{columns.begin() + column, columns.begin() + column + parts[i]},
                          {missing.begin() + text, missing.begin() + text + missings[i]}});
      column += parts[i];
      text += missings[i];
    }
    OP_REQUIRES(construction, sane, absl::InvalidArgumentError("cells: the lists do not fit each other"));
    for (const int place : columns) {
      OP_REQUIRES(construction, place >= 0, absl::InvalidArgumentError("cells: a column is below 0"));
      last_ = std::max<int64_t>(last_, place);
    }
  }

  void Compute(OpKernelContext* context) override {
    const Tensor &starts = context->input(1), &ends = context->input(2);
    OP_REQUIRES(context,
                context->input(0).dims() == 1 && starts.dims() == 2 && starts.shape() == ends.shape() &&
                    last_ < starts.dim_size(1),
                absl::InvalidArgumentError("cells: text must be of one dimension, starts and ends [n, width]"));
    const int64_t size = context->input(0).NumElements();
    const int32_t *const start = starts.flat<int32_t>().data(), *const end = ends.flat<int32_t>().data();
    for (int64_t i = 0; i < starts.NumElements(); i++)
      OP_REQUIRES(context, start[i] >= 0 && start[i] <= end[i] && end[i] <= size,
                  absl::InvalidArgumentError("cells: one is outside the text"));
    const char* const text = reinterpret_cast<const char*>(context->input(0).flat<uint8_t>().data());
    Take(context, Cells{text, start, end, starts.dim_size(1), starts.dim_size(0)});
  }

 protected:
  struct Cells {
    const char* text;
    const int32_t *start, *end;
    int64_t width, rows;
  };

  virtual void Take(OpKernelContext* context, const Cells& cells) const = 0;

  // Calls take(place in the output, cell) for each cell of each source.
  template <typename F>
  void ForEach(const Cells& cells, const F& take) const {
    std::string joined;
    for (int64_t begin = 0; begin < cells.rows; begin += kTogether) {
      const int64_t stop = std::min(cells.rows, begin + kTogether);
      for (size_t s = 0; s < sources_.size(); s++)
        for (int64_t row = begin; row < stop; row++)
          take(s * cells.rows + row, Cell(cells, sources_[s], row, &joined));
    }
  }

  std::vector<Source> sources_;

 private:
  static std::string_view One(const Cells& cells, const Source& source, int64_t row, int column) {
    const int64_t at = row * cells.width + column;
    const std::string_view cell(cells.text + cells.start[at], cells.end[at] - cells.start[at]);
    for (const std::string& text : source.missing)
      if (cell == text) return {};
    return cell;
  }

  // Of several columns their texts with the separator of crosses between them, empty where one is.
  static std::string_view Cell(const Cells& cells, const Source& source, int64_t row, std::string* joined) {
    if (source.columns.size() == 1) return One(cells, source, row, source.columns[0]);
    joined->clear();
    for (const int column : source.columns) {
      const std::string_view cell = One(cells, source, row, column);
      if (cell.empty()) return {};
      if (!joined->empty()) *joined += '\x1f';
      joined->append(cell);
    }
    return *joined;
  }

  int64_t last_ = -1;
};

class NumbersOp : public CellsOp {
 public:
  using CellsOp::CellsOp;

 protected:
  void Take(OpKernelContext* context, const Cells& cells) const override {
    const TensorShape shape({static_cast<int64_t>(sources_.size()), cells.rows});
    Tensor* outputs[3];
    for (int i = 0; i < 3; i++) OP_REQUIRES_OK(context, context->allocate_output(i, shape, &outputs[i]));
    double* const values = outputs[0]->flat<double>().data();
    bool *const ok = outputs[1]->flat<bool>().data(), *const bad = outputs[2]->flat<bool>().data();
    ForEach(cells, [&](int64_t place, std::string_view cell) {
      const char *at = cell.data(), *end = at + cell.size();
      while (at != end && is_space(*at)) at++;
      while (at != end && is_space(end[-1])) end--;
      double value = 0;
      ok[place] = parse_number(at, end, &value) && std::isfinite(value);
      bad[place] = at != end && !ok[place];
      values[place] = ok[place] ? value : 0;
    });
  }
};

class BucketsOp : public CellsOp {
 public:
  explicit BucketsOp(OpKernelConstruction* construction) : CellsOp(construction) {
    OP_REQUIRES_OK(construction, construction->GetAttr("buckets", &buckets_));
  }

 protected:
  void Take(OpKernelContext* context, const Cells& cells) const override {
    const TensorShape shape({static_cast<int64_t>(sources_.size()), cells.rows});
    Tensor *buckets, *present;
    OP_REQUIRES_OK(context, context->allocate_output(0, shape, &buckets));
    OP_REQUIRES_OK(context, context->allocate_output(1, shape, &present));
    int64_t* const bucket = buckets->flat<int64_t>().data();
    bool* const there = present->flat<bool>().data();
    const uint64_t all = buckets_;
    ForEach(cells, [&](int64_t place, std::string_view cell) {
      bucket[place] = util::Fingerprint64(cell.data(), cell.size()) % all;
      there[place] = !cell.empty();
    });
  }

 private:
  int64_t buckets_ = 1;
};

class TextsOp : public CellsOp {
 public:
  using CellsOp::CellsOp;

 protected:
  void Take(OpKernelContext* context, const Cells& cells) const override {
    Tensor* texts;
    const TensorShape shape({static_cast<int64_t>(sources_.size()), cells.rows});
    OP_REQUIRES_OK(context, context->allocate_output(0, shape, &texts));
    tstring* const text = texts->flat<tstring>().data();
    ForEach(cells, [&](int64_t place, std::string_view cell) { text[place].assign(cell.data(), cell.size()); });
  }
};

// Slots, as encoders make them, to rows: what is not present gets its slot's own id, with the value 1, or 0 and 0.
class LayRowsOp : public OpKernel {
 public:
  explicit LayRowsOp(OpKernelConstruction* construction) : OpKernel(construction) {
    OP_REQUIRES_OK(construction, construction->GetAttr("order", &order_));
    OP_REQUIRES_OK(construction, construction->GetAttr("own_ids", &own_ids_));
    OP_REQUIRES(construction, own_ids_.size() == order_.size(),
                absl::InvalidArgumentError("rows: an own id is needed for each slot"));
  }

  void Compute(OpKernelContext* context) override {
    OpInputList ids, values, present;
    OP_REQUIRES_OK(context, context->input_list("ids", &ids));
    OP_REQUIRES_OK(context, context->input_list("values", &values));
    OP_REQUIRES_OK(context, context->input_list("present", &present));
    const int64_t rows = ids[0].dims() == 2 ? ids[0].dim_size(1) : -1, slots = order_.size();
    std::vector<Slot> made;
    for (int part = 0; part < ids.size(); part++) {
      const TensorShape& shape = ids[part].shape();
      OP_REQUIRES(context,
                  shape.dims() == 2 && shape.dim_size(1) == rows && values[part].shape() == shape &&
                      present[part].shape() == shape,
                  absl::InvalidArgumentError("rows: the parts do not fit each other"));
      for (int64_t at = 0; at < shape.num_elements(); at += rows)
        made.push_back({ids[part].flat<int64_t>().data() + at, values[part].flat<float>().data() + at,
                        present[part].flat<bool>().data() + at});
    }
    Tensor *out_ids, *out_values;
    OP_REQUIRES_OK(context, context->allocate_output(0, {rows, slots}, &out_ids));
    OP_REQUIRES_OK(context, context->allocate_output(1, {rows, slots}, &out_values));
    if (!rows) return;
    std::vector<Slot> in_order;
    for (const int64_t which : order_) {
      OP_REQUIRES(context, which >= 0 && which < static_cast<int64_t>(made.size()),
                  absl::InvalidArgumentError("rows: there is no such slot"));
      in_order.push_back(made[which]);
    }
    int64_t* const id = out_ids->flat<int64_t>().data();
    float* const value = out_values->flat<float>().data();
    for (int64_t begin = 0; begin < rows; begin += kTogether) {
      const int64_t stop = std::min(rows, begin + kTogether);
      for (int64_t slot = 0; slot < slots; slot++) {
        const Slot from = in_order[slot];
        const int64_t own = own_ids_[slot];
        for (int64_t row = begin; row < stop; row++) {
          id[row * slots + slot] = from.present[row] ? from.ids[row] : own;
          value[row * slots + slot] = from.present[row] ? from.values[row] : own > 0;
        }
      }
    }
  }

 private:
  struct Slot {
    const int64_t* ids;
    const float* values;
    const bool* present;
  };

  std::vector<int64_t> order_, own_ids_;
};

// A source has `parts` of the columns, and `missings` of the texts in `missing`, in order.
#define AFM_CTR_CELLS(name)      \
  REGISTER_OP(name)              \
      .Input("text: uint8")      \
      .Input("starts: int32")    \
      .Input("ends: int32")      \
      .Attr("columns: list(int)")    \
      .Attr("parts: list(int)")      \
      .Attr("missing: list(string)") \
      .Attr("missings: list(int)")   \
      .SetShapeFn(shape_inference::UnknownShape)

AFM_CTR_CELLS("AfmCtrCellNumbers").Output("values: double").Output("ok: bool").Output("bad: bool");
AFM_CTR_CELLS("AfmCtrCellBuckets").Attr("buckets: int >= 1").Output("bucket: int64").Output("present: bool");
AFM_CTR_CELLS("AfmCtrCellTexts").Output("texts: string");

// Of each part [s, n]; `order` says which of all these slots come one after the other in a row.
REGISTER_OP("AfmCtrLayRows")
    .Input("ids: parts * int64")
    .Input("values: parts * float")
    .Input("present: parts * bool")
    .Attr("parts: int >= 1")
    .Attr("order: list(int)")
    .Attr("own_ids: list(int)")
    .Output("feature_ids: int64")
    .Output("feature_vals: float")
    .SetShapeFn(shape_inference::UnknownShape);

REGISTER_KERNEL_BUILDER(Name("AfmCtrLayRows").Device(DEVICE_CPU), LayRowsOp);
REGISTER_KERNEL_BUILDER(Name("AfmCtrCellNumbers").Device(DEVICE_CPU), NumbersOp);
REGISTER_KERNEL_BUILDER(Name("AfmCtrCellBuckets").Device(DEVICE_CPU), BucketsOp);
REGISTER_KERNEL_BUILDER(Name("AfmCtrCellTexts").Device(DEVICE_CPU), TextsOp);

}  // namespace
}  // namespace afm_ctr
