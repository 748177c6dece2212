// The TensorFlow ops around the kernels: shapes, checks, threads.
//
// Rows are cut into blocks whose number depends on shapes alone. Each block has sums of its own for the gradients by
// W, b and h, which are added up in the order of the blocks. So the result is the same, bit by bit, whatever the
// number of threads.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "problem.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/platform/denormal.h"
#include "tensorflow/core/util/work_sharder.h"

namespace afm_ctr {
namespace {

using namespace tensorflow;  // NOLINT: the names of every op

const Kernel* const kKernels[] = {
#if defined(__x86_64__)
    &kernel_avx512, &kernel_avx2,
#endif
    &kernel_baseline};

// The best that this machine supports, or the one of that name; null if it is not supported or not known.
const Kernel* find_kernel(const std::string& name) {
  for (const Kernel* kernel : kKernels)
    if (kernel->supported() && (name.empty() || name == kernel->name)) return kernel;
  return nullptr;
}

template <typename... Parts>
absl::Status Refusal(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat("attentional pooling: ", parts...));
}

// The sums of all blocks together fill at most about this many floats.
constexpr int64_t kMostSums = int64_t{1} << 22;
constexpr int64_t kMostBlocks = 64;
// Beyond so many floats the backward pass computes again what the forward pass would keep.
constexpr int64_t kMostKept = int64_t{1} << 27;

int64_t most_blocks(int64_t sums) { return std::clamp<int64_t>(kMostSums / sums, 4, kMostBlocks); }

// The last three are for GPUs: the compiled program, what it reads of the pairs, and its sizes (see gpu.py).
#define AFM_CTR_POOLING_ATTRIBUTES                                                                                  \
  Attr("scale_by_pairs: bool")                                                                                      \
      .Attr("by_slot: bool = false")                                                                                \
      .Attr("threshold: int")                                                                                       \
      .Attr("keep_scale: float")                                                                                    \
      .Attr("key: int")                                                                                             \
      .Attr("instructions: string = ''")                                                                            \
      .Attr("gpu_program: string = ''")                                                                             \
      .Attr("gpu_plan: string = ''")                                                                                \
      .Attr("gpu_sizes: list(int) = []")

class PoolingBase : public OpKernel {
 public:
  explicit PoolingBase(OpKernelConstruction* construction) : OpKernel(construction) {
    int64_t threshold, key;
    OP_REQUIRES_OK(construction, construction->GetAttr("scale_by_pairs", &scale_by_pairs_));
    OP_REQUIRES_OK(construction, construction->GetAttr("threshold", &threshold));
    OP_REQUIRES_OK(construction, construction->GetAttr("keep_scale", &keep_scale_));
    OP_REQUIRES_OK(construction, construction->GetAttr("key", &key));
    std::string instructions;
    OP_REQUIRES_OK(construction, construction->GetAttr("instructions", &instructions));
    OP_REQUIRES_OK(construction, construction->GetAttr("by_slot", &by_slot_));
    OP_REQUIRES(construction, threshold >= 0 && threshold <= (1 << 24),
                Refusal("threshold must be in [0, 2^24], got ", threshold));
    threshold_ = static_cast<int32_t>(threshold);
    key_ = static_cast<uint64_t>(key);
    kernel_ = find_kernel(instructions);
    OP_REQUIRES(construction, kernel_ != nullptr,
                Refusal("this machine has no instruction set '", instructions, "'"));
  }

 protected:
  // Checks all inputs and describes them; false if there was an error, which the context then holds. The problem points
  // into slots_of_pairs too.
  bool Describe(OpKernelContext* context, Problem* problem, std::vector<int32_t>* slots_of_pairs) {
    const Tensor &u = context->input(0), &present = context->input(1), &W = context->input(2);
    const Tensor &b = context->input(3), &h = context->input(4), &rows = context->input(5), &pairs = context->input(6);
    auto fail = [context](const std::string& what, const Tensor& found) {
      context->CtxFailure(Refusal(what, ", got ", found.shape().DebugString()));
      return false;
    };
    if (u.dims() != 3) return fail("u must be [batch, slots, k]", u);
    if (W.dims() != 2 || W.dim_size(0) != u.dim_size(2) || W.NumElements() == 0)
      return fail("W must be [k, t] with the k of u, neither of them 0", W);
    const int64_t batch = u.dim_size(0), slots = u.dim_size(1), t = W.dim_size(1);
    if (present.shape() != TensorShape({batch, slots})) return fail("present must be [batch, slots] of u", present);
    if (b.shape() != TensorShape({t})) return fail("b must be [t] of W", b);
    if (h.shape() != TensorShape({t})) return fail("h must be [t] of W", h);
    if (threshold_ && rows.shape() != TensorShape({batch})) return fail("rows must be [batch] with dropout", rows);
    if (pairs.dims() != 2 || pairs.dim_size(1) != 2) return fail("pairs must be [number, 2]", pairs);
    const auto list = pairs.flat<int32_t>();
    const int64_t room = pairs.dim_size(0) + kPairsBeyond;
    slots_of_pairs->assign(2 * room, 0);
    for (int64_t i = 0; i < list.size(); i++) {
      if (list(i) < 0 || list(i) >= slots) {
        context->CtxFailure(Refusal("a pair names slot ", list(i), " of ", slots));
        return false;
      }
      (*slots_of_pairs)[i % 2 * room + i / 2] = list(i);
    }
    const int32_t* const first = slots_of_pairs->data();
    bool all_pairs = pairs.dim_size(0) == slots * (slots - 1) / 2;
    for (int64_t i = 0, q = 0; all_pairs && i < slots; i++)
      for (int64_t j = i + 1; j < slots; j++, q++) all_pairs &= first[q] == i && first[room + q] == j;
    *problem = Problem{slots, u.dim_size(2), t, pairs.dim_size(0), first, first + room, all_pairs,
                       W.flat<float>().data(),
                       b.flat<float>().data(), h.flat<float>().data(), scale_by_pairs_, by_slot_, threshold_,
                       keep_scale_, key_,
                       u.flat<float>().data(), present.flat<bool>().data(),
                       threshold_ ? rows.flat<int64_t>().data() : nullptr};
    return true;
  }

  int64_t groups(int64_t rows) const { return (rows + kernel_->rows - 1) / kernel_->rows; }

  // Call work(block, begin, end, workspace) for every block of rows, on the threads of the device.
  template <typename Work>
  void OverBlocks(OpKernelContext* context, const Problem& problem, int64_t rows, int64_t blocks, Work work) {
    if (blocks == 0) return;
    const size_t bytes = (kernel_->workspace(problem) * sizeof(float) + 63) / 64 * 64;
    std::atomic<bool> exhausted{false};
    const auto begin_of = [&](int64_t block) { return groups(rows) * block / blocks * kernel_->rows; };
    auto some = [&](int64_t first, int64_t last) {
      // The threads of the pool flush denormal numbers to zero; whoever calls must do the same.
      const port::ScopedFlushDenormal flush;
      const std::unique_ptr<void, decltype(&std::free)> workspace(std::aligned_alloc(64, bytes), &std::free);
      if (workspace == nullptr) {
        exhausted = true;
        return;
      }
      for (int64_t block = first; block < last; block++)
        work(block, begin_of(block), std::min(rows, begin_of(block + 1)), static_cast<float*>(workspace.get()));
    };
    const auto* threads = context->device()->tensorflow_cpu_worker_threads();
    const int64_t cycles = (rows / blocks + 1) * (problem.pairs + 1) * (problem.k * problem.t / 8 + 8);
    Shard(threads->num_threads, threads->workers, blocks, cycles, some);
    OP_REQUIRES(context, !exhausted, absl::ResourceExhaustedError("attentional pooling: no memory for a workspace"));
  }

  TensorShape pooled_shape(int64_t rows, const Problem& problem) const {
    return by_slot_ ? TensorShape({rows, problem.slots, problem.k}) : TensorShape({rows, problem.k});
  }

  TensorShape kept_shape(int64_t rows, const Problem& problem) const {
    const int64_t count = groups(rows), of_group = kernel_->kept(problem);
    return count * of_group > kMostKept ? TensorShape({0, 0}) : TensorShape({count, of_group});
  }

  const Kernel* kernel_ = nullptr;

 private:
  bool scale_by_pairs_ = false, by_slot_ = false;
  int32_t threshold_ = 0;
  float keep_scale_ = 1;
  uint64_t key_ = 0;
};

class PoolingOp : public PoolingBase {
 public:
  using PoolingBase::PoolingBase;

  void Compute(OpKernelContext* context) override {
    Problem problem;
    std::vector<int32_t> slots_of_pairs;
    if (!Describe(context, &problem, &slots_of_pairs)) return;
    const int64_t rows = context->input(0).dim_size(0);
    Tensor *pooled, *lse, *kept;
    OP_REQUIRES_OK(context, context->allocate_output(0, pooled_shape(rows, problem), &pooled));
    OP_REQUIRES_OK(context, context->allocate_output(1, TensorShape({rows}), &lse));
    OP_REQUIRES_OK(context, context->allocate_output(2, kept_shape(rows, problem), &kept));
    float *to_pooled = pooled->flat<float>().data(), *to_lse = lse->flat<float>().data();
    float* const to_kept = kept->NumElements() ? kept->flat<float>().data() : nullptr;
    OverBlocks(context, problem, rows, std::min(groups(rows), kMostBlocks),
               [&](int64_t, int64_t begin, int64_t end, float* workspace) {
                 kernel_->forward(problem, workspace, begin, end, to_pooled, to_lse, to_kept);
               });
  }
};

class PoolingGradOp : public PoolingBase {
 public:
  using PoolingBase::PoolingBase;

  void Compute(OpKernelContext* context) override {
    Problem problem;
    std::vector<int32_t> slots_of_pairs;
    if (!Describe(context, &problem, &slots_of_pairs)) return;
    const Tensor &u = context->input(0), &pooled = context->input(7), &lse = context->input(8);
    const Tensor &kept = context->input(9), &upstream = context->input(10);
    const int64_t rows = u.dim_size(0), kt = problem.k * problem.t, t = problem.t;
    const TensorShape wanted = pooled_shape(rows, problem);
    OP_REQUIRES(context,
                pooled.shape() == wanted && upstream.shape() == wanted && lse.shape() == TensorShape({rows}) &&
                    kept.shape() == kept_shape(rows, problem),
                Refusal("pooled, its gradient, lse and kept must be those of u"));
    const float* const from_kept = kept.NumElements() ? kept.flat<float>().data() : nullptr;
    Tensor *du, *dW, *db, *dh;
    OP_REQUIRES_OK(context, context->allocate_output(0, u.shape(), &du));
    OP_REQUIRES_OK(context, context->allocate_output(1, TensorShape({problem.k, t}), &dW));
    OP_REQUIRES_OK(context, context->allocate_output(2, TensorShape({t}), &db));
    OP_REQUIRES_OK(context, context->allocate_output(3, TensorShape({t}), &dh));
    const int64_t size = kt + 2 * t, blocks = std::min(groups(rows), most_blocks(size));
    Tensor sums;
    OP_REQUIRES_OK(context, context->allocate_temp(DT_FLOAT, TensorShape({blocks, size}), &sums));
    float *to_u = du->flat<float>().data(), *to_sums = sums.flat<float>().data();
    OverBlocks(context, problem, rows, blocks, [&](int64_t block, int64_t begin, int64_t end, float* workspace) {
      kernel_->backward(problem, workspace, begin, end, lse.flat<float>().data(), from_kept,
                        upstream.flat<float>().data(), to_u, to_sums + block * size);
    });
    if (!context->status().ok()) return;
    auto add = [&](float* to, int64_t offset, int64_t count) {
      std::fill(to, to + count, 0.0f);
      for (int64_t block = 0; block < blocks; block++)
        for (int64_t i = 0; i < count; i++) to[i] += to_sums[block * size + offset + i];
    };
    add(dW->flat<float>().data(), 0, kt);
    add(db->flat<float>().data(), kt, t);
    add(dh->flat<float>().data(), kt + t, t);
  }
};

// The instruction sets of this machine that there are kernels for, the best one first.
class InstructionsOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    std::vector<std::string> names;
    for (const Kernel* kernel : kKernels)
      if (kernel->supported()) names.push_back(kernel->name);
    Tensor* out;
    OP_REQUIRES_OK(context, context->allocate_output(0, TensorShape({static_cast<int64_t>(names.size())}), &out));
    for (size_t i = 0; i < names.size(); i++) out->vec<tstring>()(i) = names[i];
  }
};

REGISTER_OP("AfmCtrPooling")
    .Input("u: float")
    .Input("present: bool")
    .Input("attention_matrix: float")
    .Input("bias: float")
    .Input("projection: float")
    .Input("rows: int64")
    .Input("pairs: int32")
    .AFM_CTR_POOLING_ATTRIBUTES.Output("pooled: float")
    .Output("lse: float")
    .Output("kept: float")
    .SetShapeFn([](shape_inference::InferenceContext* c) {
      shape_inference::ShapeHandle u;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 3, &u));
      bool by_slot;
      TF_RETURN_IF_ERROR(c->GetAttr("by_slot", &by_slot));
      c->set_output(0, by_slot ? u : c->MakeShape({c->Dim(u, 0), c->Dim(u, 2)}));
      c->set_output(1, c->MakeShape({c->Dim(u, 0)}));
      c->set_output(2, c->UnknownShapeOfRank(2));
      return absl::OkStatus();
    });

REGISTER_OP("AfmCtrPoolingGrad")
    .Input("u: float")
    .Input("present: bool")
    .Input("attention_matrix: float")
    .Input("bias: float")
    .Input("projection: float")
    .Input("rows: int64")
    .Input("pairs: int32")
    .Input("pooled: float")
    .Input("lse: float")
    .Input("kept: float")
    .Input("upstream: float")
    .AFM_CTR_POOLING_ATTRIBUTES.Output("by_u: float")
    .Output("by_attention_matrix: float")
    .Output("by_bias: float")
    .Output("by_projection: float")
    .SetShapeFn([](shape_inference::InferenceContext* c) {
      c->set_output(0, c->input(0));
      for (int i = 1; i < 4; i++) c->set_output(i, c->input(i + 1));
      return absl::OkStatus();
    });

REGISTER_OP("AfmCtrInstructions").Output("names: string").SetIsStateful().SetShapeFn(
    shape_inference::UnknownShape);

REGISTER_KERNEL_BUILDER(Name("AfmCtrPooling").Device(DEVICE_CPU), PoolingOp);
REGISTER_KERNEL_BUILDER(Name("AfmCtrPoolingGrad").Device(DEVICE_CPU), PoolingGradOp);
REGISTER_KERNEL_BUILDER(Name("AfmCtrInstructions").Device(DEVICE_CPU), InstructionsOp);

}  // namespace
}  // namespace afm_ctr
