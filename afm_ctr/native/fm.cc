// A factorization machine on the rows of a batch, both ways, without laying them out by slot: 4096 examples of 39 slots
// with 16 numbers are 10 MB, which would be written once and read five times.
//
// Every sum has one order whatever the number of threads: over the slots of an example, and over the batch by row.
#include <atomic>
#include <vector>

#include "rows.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace afm_ctr {
namespace {

using namespace tensorflow;  // NOLINT: the names of every op

constexpr int64_t kAhead = 8;

// logit[b] = Σ_f w x + ½ Σ_j (s_j² − Σ_f (v_j x)²) with s[b] = Σ_f v x, where w and v are of the slot's row.
class FmOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor &linear = context->input(0), &vectors = context->input(1), &position = context->input(2);
    const Tensor& scale = context->input(3);
    OP_REQUIRES(context, vectors.dims() == 2 && linear.shape() == TensorShape({vectors.dim_size(0), 1}) &&
                             position.dims() == 2 && scale.shape() == position.shape(),
                Refusal("linear must be [u, 1], vectors [u, k], positions and scale [b, f]"));
    const int64_t distinct = vectors.dim_size(0), width = vectors.dim_size(1);
    const int64_t examples = position.dim_size(0), slots = position.dim_size(1), count = examples * slots;
    Tensor *logits, *sums;
    OP_REQUIRES_OK(context, context->allocate_output(0, {examples}, &logits));
    OP_REQUIRES_OK(context, context->allocate_output(1, {examples, width}, &sums));
    const float *const w = linear.flat<float>().data(), *const v = vectors.flat<float>().data();
    const float* const x = scale.flat<float>().data();
    const int64_t* const places = position.flat<int64_t>().data();
    float *const to = logits->flat<float>().data(), *const s = sums->flat<float>().data();
    std::atomic<bool> outside{false};
    Parallel(context, examples, slots * (10 + 4 * width), [&](int64_t begin, int64_t end) {
      std::vector<float> squares(width);
      for (int64_t b = begin; b < end; b++) {
        float* const __restrict sum = s + b * width;
        float* const __restrict square = squares.data();
        std::fill(sum, sum + width, 0.0f);
        std::fill(square, square + width, 0.0f);
        float logit = 0, pairs = 0;
        for (int64_t i = b * slots; i < (b + 1) * slots; i++) {
          if (places[i] < 0 || places[i] >= distinct) {
            outside = true;
            return;
          }
          if (i + kAhead < count) __builtin_prefetch(v + places[i + kAhead] * width);
          const float* const __restrict row = v + places[i] * width;
          const float factor = x[i];
          for (int64_t j = 0; j < width; j++) {
            const float one = row[j] * factor;
            sum[j] += one;
            square[j] += one * one;
          }
          logit += w[places[i]] * factor;
        }
        for (int64_t j = 0; j < width; j++) pairs += sum[j] * sum[j] - square[j];
        to[b] = logit + 0.5f * pairs;
      }
    });
    OP_REQUIRES(context, !outside, Refusal("a position is outside [0, ", distinct, ")"));
  }
};

// By row, with g the gradient by the logits: Σ g x for w, and Σ g x (s − v x) = Σ g x s − v Σ g x² for v.
class FmGradientOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor &upstream = context->input(0), &sums = context->input(1), &vectors = context->input(2);
    const Tensor &position = context->input(3), &scale = context->input(4);
    const int64_t examples = upstream.NumElements();
    OP_REQUIRES(context, upstream.dims() == 1 && vectors.dims() == 2 && position.dims() == 2 &&
                             position.dim_size(0) == examples && scale.shape() == position.shape() &&
                             sums.shape() == TensorShape({examples, vectors.dim_size(1)}) &&
                             position.NumElements() < (int64_t{1} << 31),
                Refusal("the gradient must be [b], sums [b, k], vectors [u, k], positions and scale [b, f]"));
    const int64_t distinct = vectors.dim_size(0), width = vectors.dim_size(1), count = position.NumElements();
    const uint32_t slots = static_cast<uint32_t>(std::max<int64_t>(position.dim_size(1), 1));
    Tensor *by_linear, *by_vectors;
    OP_REQUIRES_OK(context, context->allocate_output(0, {distinct, 1}, &by_linear));
    OP_REQUIRES_OK(context, context->allocate_output(1, vectors.shape(), &by_vectors));
    const float *const g = upstream.flat<float>().data(), *const s = sums.flat<float>().data();
    const float *const v = vectors.flat<float>().data(), *const x = scale.flat<float>().data();
    const int64_t* const places = position.flat<int64_t>().data();
    float *const to_linear = by_linear->flat<float>().data(), *const to = by_vectors->flat<float>().data();
    std::fill(to_linear, to_linear + distinct, 0.0f);
    std::fill(to, to + distinct * width, 0.0f);
    std::vector<float> squares(distinct, 0.0f);
    const auto add = [&](RowPart part, const int32_t* mine, int64_t found) {
      for (int64_t n = 0; n < found; n++) {
        if (n + kAhead < found) __builtin_prefetch(to + places[mine[n + kAhead]] * width, 1);
        const int32_t i = mine[n];
        const int64_t place = places[i];
        const uint32_t b = static_cast<uint32_t>(i) / slots;
        const float one = g[b] * x[i];
        const float* const __restrict sum = s + b * width;
        float* const __restrict row = to + place * width;
        for (int64_t j = 0; j < width; j++) row[j] += one * sum[j];
        to_linear[place] += one;
        squares[place] += one * x[i];
      }
      for (int64_t row = 0; row < distinct; row++)
        if (part.Has(row))
          for (int64_t j = row * width; j < (row + 1) * width; j++) to[j] -= squares[row] * v[j];
    };
    OP_REQUIRES(context, AddByRow(context, places, count, distinct, width + 1, add),
                Refusal("a position is outside [0, ", distinct, ")"));
  }
};

REGISTER_OP("AfmCtrFm")
    .Input("linear: float")
    .Input("vectors: float")
    .Input("position: int64")
    .Input("scale: float")
    .Output("logits: float")
    .Output("sums: float")
    .SetShapeFn([](shape_inference::InferenceContext* c) {
      shape_inference::ShapeHandle vectors, position;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 2, &vectors));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(2), 2, &position));
      c->set_output(0, c->Vector(c->Dim(position, 0)));
      c->set_output(1, c->Matrix(c->Dim(position, 0), c->Dim(vectors, 1)));
      return absl::OkStatus();
    });

REGISTER_OP("AfmCtrFmGradient")
    .Input("upstream: float")
    .Input("sums: float")
    .Input("vectors: float")
    .Input("position: int64")
    .Input("scale: float")
    .Output("by_linear: float")
    .Output("by_vectors: float")
    .SetShapeFn([](shape_inference::InferenceContext* c) {
      shape_inference::ShapeHandle vectors;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(2), 2, &vectors));
      c->set_output(0, c->Matrix(c->Dim(vectors, 0), 1));
      c->set_output(1, vectors);
      return absl::OkStatus();
    });

REGISTER_KERNEL_BUILDER(Name("AfmCtrFm").Device(DEVICE_CPU), FmOp);
REGISTER_KERNEL_BUILDER(Name("AfmCtrFmGradient").Device(DEVICE_CPU), FmGradientOp);

}  // namespace
}  // namespace afm_ctr
