// What a step does with the rows of a table, on CPUs: the distinct ids of a batch, the rows laid out, their gradient
// added up by row, and the optimizers' rules on single rows.
//
// Each sum is taken in the order of the batch whatever the number of threads, and products are rounded before they are
// added (-ffp-contract=off), as TensorFlow's operations one by one do.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "rows.h"
#include "rules.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/resource_mgr.h"
#include "tensorflow/core/framework/resource_var.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace afm_ctr {
namespace {

using namespace tensorflow;  // NOLINT: the names of every op

// Positions of distinct ids, found by open addressing.
class Positions {
 public:
  explicit Positions(int bits) : places_(int64_t{1} << bits, -1), shift_(64 - bits) {}

  int64_t Of(int64_t id) {
    if (2 * ids.size() >= places_.size()) Grow();
    size_t at = Start(id);
    for (; places_[at] >= 0; at = (at + 1) & (places_.size() - 1))
      if (ids[places_[at]] == id) return places_[at];
    places_[at] = static_cast<int32_t>(ids.size());
    ids.push_back(id);
    return places_[at];
  }

  void Prefetch(int64_t id) const { __builtin_prefetch(&places_[Start(id)]); }

  int bits() const { return 64 - shift_; }

  std::vector<int64_t> ids;  // in the order of their first appearance

 private:
  size_t Start(int64_t id) const { return (static_cast<uint64_t>(id) * 0x9E3779B97F4A7C15ull) >> shift_; }

  void Grow() {
    places_.assign(2 * places_.size(), -1);
    shift_--;
    for (size_t i = 0; i < ids.size(); i++) {
      size_t at = Start(ids[i]);
      while (places_[at] >= 0) at = (at + 1) & (places_.size() - 1);
      places_[at] = static_cast<int32_t>(i);
    }
  }

  std::vector<int32_t> places_;
  int shift_;
};

class MergeOp : public OpKernel {
 public:
  explicit MergeOp(OpKernelConstruction* construction) : OpKernel(construction) {
    OP_REQUIRES_OK(construction, construction->GetAttr("zero_first", &zero_first_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor& given = context->input(0);
    OP_REQUIRES(context, given.NumElements() < (int64_t{1} << 31) - 1,
                Refusal("ids must be fewer than 2^31 - 1, got ", given.shape().DebugString()));
    const int64_t* const ids = given.flat<int64_t>().data();
    const int64_t count = given.NumElements();
    Tensor *unique, *inverse;
    OP_REQUIRES_OK(context, context->allocate_output(1, given.shape(), &inverse));
    int64_t* const to = inverse->flat<int64_t>().data();
    constexpr int64_t kAhead = 16;
    Positions positions(bits_);
    if (zero_first_) positions.Of(0);
    for (int64_t i = 0; i < count; i++) {
      if (i + kAhead < count) positions.Prefetch(ids[i + kAhead]);
      to[i] = positions.Of(ids[i]);
    }
    OP_REQUIRES_OK(context, context->allocate_output(0, {static_cast<int64_t>(positions.ids.size())}, &unique));
    std::copy(positions.ids.begin(), positions.ids.end(), unique->flat<int64_t>().data());
    const int bits = positions.bits(), fewer = bits > kBits && positions.ids.size() < (size_t{1} << bits) / 8;
    bits_ = bits - fewer;
  }

 private:
  static constexpr int kBits = 12;

  bool zero_first_;
  std::atomic<int> bits_{kBits};  // of the next batch's table, by the last: one that need not grow takes a third less
};

// Single rows of a variable. TensorFlow's gather asks for no row ahead, and takes three times as long.
class ReadRowsOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor& indices = context->input(1);
    core::RefCountPtr<Var> variable;
    OP_REQUIRES_OK(context, LookupResource(context, HandleFromInput(context, 0), &variable));
    const tf_shared_lock lock(*variable->mu());
    const Tensor& weights = *variable->tensor();
    OP_REQUIRES(context, weights.dtype() == DT_FLOAT && weights.dims() == 2 && indices.dims() == 1,
                Refusal("weights must be float [rows, d] and rows [u]"));
    const int64_t rows = weights.dim_size(0), width = weights.dim_size(1), count = indices.NumElements();
    Tensor* out;
    OP_REQUIRES_OK(context, context->allocate_output(0, {count, width}, &out));
    const float* const from = weights.flat<float>().data();
    const int64_t* const places = indices.flat<int64_t>().data();
    float* const to = out->flat<float>().data();
    OP_REQUIRES(context, std::all_of(places, places + count, [rows](int64_t p) { return p >= 0 && p < rows; }),
                Refusal("a row is outside [0, ", rows, ")"));
    Parallel(context, count, 40 + width, [&](int64_t begin, int64_t end) {
      constexpr int64_t kAhead = 16;
      for (int64_t i = begin; i < end; i++) {
        if (i + kAhead < end) __builtin_prefetch(from + places[i + kAhead] * width);
        if (width == 1) {
          to[i] = from[places[i]];
        } else {
          std::copy_n(from + places[i] * width, width, to + i * width);
        }
      }
    });
  }
};

class ExpandOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor &rows = context->input(0), &position = context->input(1), &scale = context->input(2);
    OP_REQUIRES(context, rows.dims() == 2 && position.dims() == 1 && scale.shape() == position.shape(),
                Refusal("rows must be [u, d], positions and scale [n]"));
    const int64_t count = position.NumElements(), distinct = rows.dim_size(0), width = rows.dim_size(1);
    Tensor* out;
    OP_REQUIRES_OK(context, context->allocate_output(0, {count, width}, &out));
    const float *const from = rows.flat<float>().data(), *const by = scale.flat<float>().data();
    const int64_t* const places = position.flat<int64_t>().data();
    float* const to = out->flat<float>().data();
    std::atomic<bool> outside{false};
    Parallel(context, count, 4 + 2 * width, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) {
        if (places[i] < 0 || places[i] >= distinct) {
          outside = true;
          return;
        }
        const float* const __restrict row = from + places[i] * width;
        float* const __restrict place = to + i * width;
        const float factor = by[i];
        for (int64_t j = 0; j < width; j++) place[j] = row[j] * factor;
      }
    });
    OP_REQUIRES(context, !outside, Refusal("a position is outside [0, ", distinct, ")"));
  }
};

AFM_CTR_CLONES void AddSome(const int64_t* places, const float* from, const float* by, int64_t width,
                            const int32_t* mine, int64_t found, float* to) {
  constexpr int64_t kAhead = 8;
  for (int64_t n = 0; n < found; n++) {
    if (n + kAhead < found) __builtin_prefetch(to + places[mine[n + kAhead]] * width, 1);
    const int64_t i = mine[n];
    AddRow(to + places[i] * width, from + i * width, by == nullptr ? 1.0f : by[i], width);
  }
}

// result[p] = Σ scale[i] values[i] over the i with position[i] = p, in the order of i.
class AddRowsOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor &values = context->input(0), &position = context->input(1), &scale = context->input(2);
    OP_REQUIRES(context, TensorShapeUtils::IsScalar(context->input(3).shape()), Refusal("the count must be a scalar"));
    const int64_t distinct = context->input(3).scalar<int64_t>()();
    OP_REQUIRES(context, values.dims() == 2 && position.dims() == 1 && values.dim_size(0) == position.dim_size(0) &&
                             (scale.NumElements() == 0 || scale.shape() == position.shape()) && distinct >= 0 &&
                             position.NumElements() < (int64_t{1} << 31),
                Refusal("values must be [n, d], positions [n], scale [n] or [0], with n < 2^31"));
    const int64_t count = position.NumElements(), width = values.dim_size(1);
    Tensor* out;
    OP_REQUIRES_OK(context, context->allocate_output(0, {distinct, width}, &out));
    const float* const from = values.flat<float>().data();
    const float* const by = scale.NumElements() == 0 ? nullptr : scale.flat<float>().data();
    const int64_t* const places = position.flat<int64_t>().data();
    float* const to = out->flat<float>().data();
    std::fill(to, to + distinct * width, 0.0f);
    const auto add = [&](RowPart, const int32_t* mine, int64_t found) {
      AddSome(places, from, by, width, mine, found, to);
    };
    OP_REQUIRES(context, AddByRow(context, places, count, distinct, width, add),
                Refusal("a position is outside [0, ", distinct, ")"));
  }
};

// Of the places [begin, end): the weights and the slots in `data`, of `widths` numbers a row, and the gradient.
template <typename Rule>
AFM_CTR_CLONES void StepSome(const float* options, const int64_t* places, const float* gradient, float* const* data,
                             const int64_t* widths, int64_t begin, int64_t end) {
  constexpr int64_t kAhead = 8;
  const int64_t width = widths[0];
  float o[Rule::kOptions];  // which nothing that is written can be
  std::copy_n(options, Rule::kOptions, o);
  for (int64_t i = begin; i < end; i++) {
    if (i + kAhead < end)
      for (int v = 0; v <= Rule::kSlots; v++) __builtin_prefetch(data[v] + places[i + kAhead] * widths[v], 1);
    float* slots[Rule::kSlots + 1];  // one more than there are, since there may be none
    for (int s = 0; s < Rule::kSlots; s++) slots[s] = data[s + 1] + places[i] * widths[s + 1];
    float* const weights = data[0] + places[i] * width;
    if constexpr (Rule::kByRow) {
      if (widths[1] != width) {
        Rule::StepRow(o, gradient + i * width, weights, slots[0], width);
        continue;
      }
    }
#pragma GCC ivdep
    for (int64_t j = 0; j < width; j++) Rule::Step(o, gradient[i * width + j], weights + j, slots, j);
  }
}

// One step on some rows of a variable and of its slots, in place.
template <typename Rule>
class StepRowsOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    constexpr int kVariables = 1 + Rule::kSlots;
    const Tensor &indices = context->input(kVariables), &gradient = context->input(kVariables + 1);
    const Tensor &options = context->input(kVariables + 2), &counts = context->input(kVariables + 3);
    OP_REQUIRES(context, indices.dims() == 1 && gradient.dims() == 2 && gradient.dim_size(0) == indices.dim_size(0),
                Refusal("rows must be [u] and their gradient [u, d]"));
    OP_REQUIRES(context, options.shape() == TensorShape({Rule::kOptions}), Refusal("the rule has other options"));
    if (!counts.scalar<bool>()()) return;

    core::RefCountPtr<Var> variables[kVariables];
    std::vector<mutex*> locks;
    for (int i = 0; i < kVariables; i++) {
      OP_REQUIRES_OK(context, LookupResource(context, HandleFromInput(context, i), &variables[i]));
      locks.push_back(variables[i]->mu());
    }
    std::sort(locks.begin(), locks.end());  // the order that all of TensorFlow locks variables in
    std::vector<std::unique_ptr<mutex_lock>> held;
    for (mutex* one : locks) held.push_back(std::make_unique<mutex_lock>(*one));
    float* data[kVariables];
    int64_t widths[kVariables];
    const int64_t width = gradient.dim_size(1), count = indices.NumElements();
    int64_t rows = 0;
    for (int i = 0; i < kVariables; i++) {
      const Tensor& value = *variables[i]->tensor();
      OP_REQUIRES(context, value.dtype() == DT_FLOAT && value.dims() == 2 &&
                               (value.dim_size(1) == width || (Rule::kByRow && i > 0 && value.dim_size(1) == 1)) &&
                               (i == 0 || value.dim_size(0) == rows),
                  Refusal("weights and slots must be float [rows, d], with the d of the gradient"));
      widths[i] = value.dim_size(1);
      rows = value.dim_size(0);
      OP_REQUIRES_OK(context, Writable(context, variables[i].get()));
      data[i] = variables[i]->tensor()->template flat<float>().data();
    }
    const int64_t* const places = indices.flat<int64_t>().data();
    const float* const slopes = gradient.flat<float>().data();
    OP_REQUIRES(context, std::all_of(places, places + count, [rows](int64_t p) { return p >= 0 && p < rows; }),
                Refusal("a row is outside [0, ", rows, ")"));
    Parallel(context, count, kVariables * (40 + 2 * width), [&](int64_t begin, int64_t end) {
      StepSome<Rule>(options.flat<float>().data(), places, slopes, data, widths, begin, end);
    });
  }

 private:
  // As TensorFlow's sparse updates do: from now on whoever reads the variable gets a copy.
  static absl::Status Writable(OpKernelContext* context, Var* variable) {
    if (variable->copy_on_read_mode) return absl::OkStatus();
    if (!variable->tensor()->RefCountIsOne()) {
      Tensor copy;
      const absl::Status status = context->allocate_temp(DT_FLOAT, variable->tensor()->shape(), &copy);
      if (!status.ok()) return status;
      const auto from = variable->tensor()->flat<float>();
      std::copy(from.data(), from.data() + from.size(), copy.flat<float>().data());
      *variable->tensor() = copy;
    }
    variable->copy_on_read_mode = true;
    return absl::OkStatus();
  }
};

REGISTER_OP("AfmCtrMerge")
    .Input("ids: int64")
    .Attr("zero_first: bool = false")
    .Output("unique: int64")
    .Output("inverse: int64")
    .SetShapeFn([](shape_inference::InferenceContext* c) {
      c->set_output(0, c->Vector(shape_inference::InferenceContext::kUnknownDim));
      c->set_output(1, c->input(0));
      return absl::OkStatus();
    });

REGISTER_OP("AfmCtrReadRows")
    .Input("weights: resource")
    .Input("rows: int64")
    .Output("read: float")
    .SetIsStateful()
    .SetShapeFn([](shape_inference::InferenceContext* c) {
      shape_inference::ShapeHandle weights = c->UnknownShapeOfRank(2), rows;
      const auto* const held = c->input_handle_shapes_and_types(0);
      if (held != nullptr && !held->empty()) TF_RETURN_IF_ERROR(c->WithRank((*held)[0].shape, 2, &weights));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 1, &rows));
      c->set_output(0, c->Matrix(c->Dim(rows, 0), c->Dim(weights, 1)));
      return absl::OkStatus();
    });

REGISTER_OP("AfmCtrExpand")
    .Input("rows: float")
    .Input("position: int64")
    .Input("scale: float")
    .Output("expanded: float")
    .SetShapeFn([](shape_inference::InferenceContext* c) {
      shape_inference::ShapeHandle rows, position;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 2, &rows));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 1, &position));
      c->set_output(0, c->Matrix(c->Dim(position, 0), c->Dim(rows, 1)));
      return absl::OkStatus();
    });

REGISTER_OP("AfmCtrAddRows")
    .Input("values: float")
    .Input("position: int64")
    .Input("scale: float")
    .Input("count: int64")
    .Output("sums: float")
    .SetShapeFn([](shape_inference::InferenceContext* c) {
      shape_inference::ShapeHandle values;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 2, &values));
      shape_inference::DimensionHandle count;
      TF_RETURN_IF_ERROR(c->MakeDimForScalarInput(3, &count));
      c->set_output(0, c->Matrix(count, c->Dim(values, 1)));
      return absl::OkStatus();
    });

#define AFM_CTR_STEP(NAME, SLOTS, RULE)                                          \
  REGISTER_OP(NAME)                                                              \
      .Input("weights: resource")                                                \
      SLOTS.Input("rows: int64")                                                 \
      .Input("gradient: float")                                                  \
      .Input("options: float")                                                   \
      .Input("counts: bool")                                                     \
      .SetIsStateful()                                                           \
      .SetShapeFn(shape_inference::NoOutputs);                                   \
  REGISTER_KERNEL_BUILDER(Name(NAME).Device(DEVICE_CPU), StepRowsOp<RULE>)

AFM_CTR_STEP("AfmCtrSgdRows", , Sgd);
AFM_CTR_STEP("AfmCtrAdagradRows", .Input("accumulator: resource"), Adagrad);
AFM_CTR_STEP("AfmCtrAdamRows", .Input("momentum: resource").Input("velocity: resource"), Adam);
AFM_CTR_STEP("AfmCtrFtrlRows", .Input("accumulator: resource").Input("linear: resource"), Ftrl);

REGISTER_KERNEL_BUILDER(Name("AfmCtrMerge").Device(DEVICE_CPU), MergeOp);
REGISTER_KERNEL_BUILDER(Name("AfmCtrReadRows").Device(DEVICE_CPU), ReadRowsOp);
REGISTER_KERNEL_BUILDER(Name("AfmCtrExpand").Device(DEVICE_CPU), ExpandOp);
REGISTER_KERNEL_BUILDER(Name("AfmCtrAddRows").Device(DEVICE_CPU), AddRowsOp);

}  // namespace
}  // namespace afm_ctr
