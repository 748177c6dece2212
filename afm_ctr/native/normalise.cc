// Layer normalisation without gain and offset, of what each row's slots have together, and the sum over the slots: in
// one pass over memory forward and one backward, where TensorFlow's operations one by one take twenty.
//
// A row depends on no other, so results are the same whatever the number of threads.
#include <cmath>

#include "rows.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace afm_ctr {
namespace {

using namespace tensorflow;  // NOLINT: the names of every op

constexpr int kLanes = 16;

// Σ term(i, lanes of some summands) for the i in [0, n): of vectors at each multiple of kLanes, then of single numbers.
template <typename OfLanes, typename OfOne>
float Sum(int64_t n, const OfLanes& of_lanes, const OfOne& of_one) {
  Lanes sums[2] = {};
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    sums[0] += of_lanes(i);
    sums[1] += of_lanes(i + kLanes);
  }
  float sum = 0;
  for (; i < n; i++) sum += of_one(i);
  sums[0] += sums[1];
  for (int lane = 0; lane < kLanes; lane++) sum += sums[0][lane];
  return sum;
}

// Of the n = slots · k numbers v of a row: (v − mean) / sqrt(variance + epsilon); the sum over the slots; and the factor.
class NormaliseOp : public OpKernel {
 public:
  explicit NormaliseOp(OpKernelConstruction* construction) : OpKernel(construction) {
    OP_REQUIRES_OK(construction, construction->GetAttr("epsilon", &epsilon_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor& values = context->input(0);
    OP_REQUIRES(context, values.dims() == 3 && (values.dim_size(0) == 0 || values.NumElements() > 0),
                Refusal("what is normalised must be [b, f, k], neither f nor k 0, got ", values.shape().DebugString()));
    const int64_t rows = values.dim_size(0), slots = values.dim_size(1), k = values.dim_size(2), n = slots * k;
    Tensor *normalised, *totals, *factors;
    OP_REQUIRES_OK(context, context->allocate_output(0, {rows, n}, &normalised));
    OP_REQUIRES_OK(context, context->allocate_output(1, {rows, k}, &totals));
    OP_REQUIRES_OK(context, context->allocate_output(2, {rows}, &factors));
    const float* const from = values.flat<float>().data();
    float *const to = normalised->flat<float>().data(), *const sums = totals->flat<float>().data();
    float* const by = factors->flat<float>().data();
    Parallel(context, rows, 2 * n, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; row++) {
        const float* const __restrict v = from + row * n;
        float *const __restrict out = to + row * n, *const __restrict total = sums + row * k;
        std::fill(total, total + k, 0.0f);
        for (int64_t f = 0; f < slots; f++)
          for (int64_t j = 0; j < k; j++) total[j] += v[f * k + j];
        float mean = 0;
        for (int64_t j = 0; j < k; j++) mean += total[j];
        mean /= n;
        const auto square = [](auto apart) { return apart * apart; };
        const float squares = Sum(
            n, [&](int64_t i) { return square(Load<Lanes>(v + i) - mean); }, [&](int64_t i) { return square(v[i] - mean); });
        const float factor = 1 / std::sqrt(squares / n + epsilon_);
        for (int64_t i = 0; i < n; i++) out[i] = (v[i] - mean) * factor;
        by[row] = factor;
      }
    });
  }

 private:
  float epsilon_;
};

// By v, with y what is normalised, g and t the gradients by it and by the sum over the slots:
// factor · (g − mean(g) − y mean(g y)) + t.
class NormaliseGradOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor &normalised = context->input(0), &factors = context->input(1);
    const Tensor &upstream = context->input(2), &by_totals = context->input(3);
    OP_REQUIRES(context,
                normalised.dims() == 2 && upstream.shape() == normalised.shape() && by_totals.dims() == 2 &&
                    factors.shape() == TensorShape({normalised.dim_size(0)}) &&
                    by_totals.dim_size(0) == normalised.dim_size(0) && by_totals.dim_size(1) > 0 &&
                    normalised.dim_size(1) % by_totals.dim_size(1) == 0,
                Refusal("normalised and its gradient must be [b, f * k], the factors [b], the sums' gradient [b, k]"));
    const int64_t rows = normalised.dim_size(0), n = normalised.dim_size(1), k = by_totals.dim_size(1);
    Tensor* by_values;
    OP_REQUIRES_OK(context, context->forward_input_or_allocate_output({2}, 0, {rows, n / k, k}, &by_values));
    const float *const ys = normalised.flat<float>().data(), *const by = factors.flat<float>().data();
    const float *const gs = upstream.flat<float>().data(), *const ts = by_totals.flat<float>().data();
    float* const to = by_values->flat<float>().data();
    Parallel(context, rows, 2 * n, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; row++) {
        const float *const y = ys + row * n, *const g = gs + row * n, *const t = ts + row * k;
        float* const out = to + row * n;  // which may be g
        const float mean = Sum(n, [&](int64_t i) { return Load<Lanes>(g + i); }, [&](int64_t i) { return g[i]; }) / n;
        const float along =
            Sum(n, [&](int64_t i) { return Load<Lanes>(g + i) * Load<Lanes>(y + i); }, [&](int64_t i) { return g[i] * y[i]; }) / n;
        const float factor = by[row];
        for (int64_t f = 0; f < n; f += k) {
#pragma GCC ivdep
          for (int64_t j = 0; j < k; j++) out[f + j] = factor * (g[f + j] - mean - y[f + j] * along) + t[j];
        }
      }
    });
  }
};

REGISTER_OP("AfmCtrNormalise")
    .Input("values: float")
    .Attr("epsilon: float")
    .Output("normalised: float")
    .Output("total: float")
    .Output("factor: float")
    .SetShapeFn([](shape_inference::InferenceContext* c) {
      shape_inference::ShapeHandle values;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 3, &values));
      shape_inference::DimensionHandle width;
      TF_RETURN_IF_ERROR(c->Multiply(c->Dim(values, 1), c->Dim(values, 2), &width));
      c->set_output(0, c->Matrix(c->Dim(values, 0), width));
      c->set_output(1, c->Matrix(c->Dim(values, 0), c->Dim(values, 2)));
      c->set_output(2, c->Vector(c->Dim(values, 0)));
      return absl::OkStatus();
    });

REGISTER_OP("AfmCtrNormaliseGrad")
    .Input("normalised: float")
    .Input("factor: float")
    .Input("upstream: float")
    .Input("by_total: float")
    .Output("by_values: float")
    .SetShapeFn([](shape_inference::InferenceContext* c) {
      shape_inference::ShapeHandle totals;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(3), 2, &totals));
      c->set_output(0, c->MakeShape({c->Dim(totals, 0), shape_inference::InferenceContext::kUnknownDim,
                                     c->Dim(totals, 1)}));
      return absl::OkStatus();
    });

REGISTER_KERNEL_BUILDER(Name("AfmCtrNormalise").Device(DEVICE_CPU), NormaliseOp);
REGISTER_KERNEL_BUILDER(Name("AfmCtrNormaliseGrad").Device(DEVICE_CPU), NormaliseGradOp);

}  // namespace
}  // namespace afm_ctr
