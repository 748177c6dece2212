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

struct Fm {
  int64_t distinct, slots, width, count;
  const float *w, *v, *x;
  const int64_t* places;
  float *logits, *sums;
};

// Of some numbers of an example's vectors: their sum, and what they add to Σ_j (s_j² − Σ_f (v_j x)²).
template <typename Numbers>
AFM_CTR_INLINE void FmNumbers(const Fm& fm, int64_t b, int64_t j, float* pairs) {
  Numbers sum = {}, squares = {};
  for (int64_t i = b * fm.slots; i < (b + 1) * fm.slots; i++) {
    if (i + kAhead < fm.count) __builtin_prefetch(fm.v + fm.places[i + kAhead] * fm.width + j);
    const Numbers one = Load<Numbers>(fm.v + fm.places[i] * fm.width + j) * fm.x[i];
    sum += one;
    squares += one * one;
  }
  Store(fm.sums + b * fm.width + j, sum);
  const Numbers apart = sum * sum - squares;
  float each[sizeof(Numbers) / sizeof(float)];
  Store(each, apart);
  for (const float one : each) *pairs += one;
}

// False if a position is outside [0, distinct).
AFM_CTR_CLONES bool FmExamples(const Fm& fm, int64_t begin, int64_t end) {
  for (int64_t b = begin; b < end; b++) {
    float logit = 0, pairs = 0;
    for (int64_t i = b * fm.slots; i < (b + 1) * fm.slots; i++) {
      if (fm.places[i] < 0 || fm.places[i] >= fm.distinct) return false;
      logit += fm.w[fm.places[i]] * fm.x[i];
    }
    ByLanes(fm.width, [&](auto* numbers, int64_t j) __attribute__((always_inline)) {
      FmNumbers<std::remove_pointer_t<decltype(numbers)>>(fm, b, j, &pairs);
    });
    fm.logits[b] = logit + 0.5f * pairs;
  }
  return true;
}

struct FmSlopes {
  int64_t distinct, slots, width;
  const float *g, *sums, *v, *x;
  const int64_t* places;
  float *by_linear, *by_vectors, *squares;
};

// What the summands `mine` add, and then what the rows of the part give back.
AFM_CTR_CLONES void FmRows(const FmSlopes& fm, RowPart part, const int32_t* mine, int64_t found) {
  const int64_t width = fm.width;
  const uint32_t slots = static_cast<uint32_t>(std::max<int64_t>(fm.slots, 1));
  for (int64_t n = 0; n < found; n++) {
    if (n + kAhead < found) __builtin_prefetch(fm.by_vectors + fm.places[mine[n + kAhead]] * width, 1);
    const int32_t i = mine[n];
    const int64_t place = fm.places[i];
    const uint32_t b = static_cast<uint32_t>(i) / slots;
    const float one = fm.g[b] * fm.x[i];
    AddRow(fm.by_vectors + place * width, fm.sums + b * width, one, width);
    fm.by_linear[place] += one;
    fm.squares[place] += one * fm.x[i];
  }
  for (int64_t row = 0; row < fm.distinct; row++)
    if (part.Has(row)) AddRow(fm.by_vectors + row * width, fm.v + row * width, -fm.squares[row], width);
}

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
    const int64_t examples = position.dim_size(0), slots = position.dim_size(1);
    Tensor *logits, *sums;
    OP_REQUIRES_OK(context, context->allocate_output(0, {examples}, &logits));
    OP_REQUIRES_OK(context, context->allocate_output(1, {examples, width}, &sums));
    const Fm fm{distinct, slots, width, examples * slots, linear.flat<float>().data(), vectors.flat<float>().data(),
                scale.flat<float>().data(), position.flat<int64_t>().data(), logits->flat<float>().data(),
                sums->flat<float>().data()};
    std::atomic<bool> outside{false};
    Parallel(context, examples, slots * (10 + 2 * width), [&](int64_t begin, int64_t end) {
      if (!FmExamples(fm, begin, end)) outside = true;
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
    Tensor *by_linear, *by_vectors;
    OP_REQUIRES_OK(context, context->allocate_output(0, {distinct, 1}, &by_linear));
    OP_REQUIRES_OK(context, context->allocate_output(1, vectors.shape(), &by_vectors));
    by_linear->flat<float>().setZero();
    by_vectors->flat<float>().setZero();
    std::vector<float> squares(distinct, 0.0f);
    const FmSlopes fm{distinct, position.dim_size(1), width, upstream.flat<float>().data(), sums.flat<float>().data(),
                      vectors.flat<float>().data(), scale.flat<float>().data(), position.flat<int64_t>().data(),
                      by_linear->flat<float>().data(), by_vectors->flat<float>().data(), squares.data()};
    const auto add = [&](RowPart part, const int32_t* mine, int64_t found) { FmRows(fm, part, mine, found); };
    OP_REQUIRES(context, AddByRow(context, fm.places, count, distinct, width + 1, add),
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
