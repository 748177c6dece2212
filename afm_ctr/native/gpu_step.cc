// Steps of the optimizers on NVIDIA GPUs: one launch for a variable and its slots, in place.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "gpu_driver.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/resource_mgr.h"
#include "tensorflow/core/framework/resource_var.h"

namespace afm_ctr {
namespace {

using namespace tensorflow;  // NOLINT: the names of every op

constexpr int kMostVariables = 3;

class GpuStepOp : public OpKernel {
 public:
  explicit GpuStepOp(OpKernelConstruction* c) : OpKernel(c) {
    OP_REQUIRES_OK(c, c->GetAttr("N", &variables_));
    OP_REQUIRES_OK(c, c->GetAttr("whole", &whole_));
    OP_REQUIRES_OK(c, c->GetAttr("program", &program_));
    OP_REQUIRES(c, variables_ <= kMostVariables && !program_.empty(),
                absl::InvalidArgumentError("a step on a GPU: weights and at most two slots, and the rule's program"));
  }

  ~GpuStepOp() override {
    if (module_ == nullptr) return;
    const InContext context(stream_);
    if (context.status.ok()) driver().ModuleUnload(module_);
  }

  void Compute(OpKernelContext* c) override {
    const Tensor &rows = c->input(variables_), &gradient = c->input(variables_ + 1);
    const Tensor &options = c->input(variables_ + 2), &counts = c->input(variables_ + 3);
    core::RefCountPtr<Var> variables[kMostVariables];
    std::vector<mutex*> locks;
    for (int i = 0; i < variables_; i++) {
      OP_REQUIRES_OK(c, LookupResource(c, HandleFromInput(c, i), &variables[i]));
      locks.push_back(variables[i]->mu());
    }
    std::sort(locks.begin(), locks.end());  // the order that all of TensorFlow locks variables in
    std::vector<std::unique_ptr<mutex_lock>> held;
    for (mutex* one : locks) held.push_back(std::make_unique<mutex_lock>(*one));

    const TensorShape shape = variables[0]->tensor()->shape();
    for (int i = 0; i < variables_; i++)
      OP_REQUIRES(c, variables[i]->tensor()->dtype() == DT_FLOAT && variables[i]->tensor()->shape() == shape,
                  absl::InvalidArgumentError("a step on a GPU: weights and slots must be float of one shape"));
    OP_REQUIRES(c,
                whole_ ? gradient.shape() == shape
                       : shape.dims() == 2 && rows.dims() == 1 &&
                             gradient.shape() == TensorShape({rows.dim_size(0), shape.dim_size(1)}),
                absl::InvalidArgumentError("a step on a GPU: the gradient is not of the variable's shape, nor [u, d]"));
    if (gradient.NumElements() == 0) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    OP_REQUIRES_OK(c, Load(c));
    const InContext context(stream_);
    OP_REQUIRES_OK(c, context.status);
    float* data[kMostVariables] = {};
    for (int i = 0; i < variables_; i++) {
      OP_REQUIRES_OK(c, Own(c, variables[i].get()));
      data[i] = variables[i]->tensor()->flat<float>().data();
    }
    const int64_t* places = whole_ ? nullptr : rows.flat<int64_t>().data();
    const float *slopes = gradient.flat<float>().data(), *scalars = options.flat<float>().data();
    const bool* whether = counts.scalar<bool>().data();
    int64_t count = whole_ ? gradient.NumElements() : rows.dim_size(0), width = whole_ ? 1 : shape.dim_size(1);
    int64_t limit = whole_ ? count : shape.dim_size(0);
    void* parameters[] = {&data[0], &data[1], &data[2], &places, &slopes, &scalars, &whether, &count, &width, &limit};
    constexpr int64_t kThreads = 256, kMostBlocks = 8192;
    const int64_t blocks = std::min((count * width + kThreads - 1) / kThreads, kMostBlocks);
    OP_REQUIRES_OK(
        c, Checked(driver().LaunchKernel(step_, blocks, 1, 1, kThreads, 1, 1, 0, stream_, parameters, nullptr), "step"));
  }

 private:
  absl::Status Load(OpKernelContext* c) {
    if (module_ != nullptr) return absl::OkStatus();
    TF_RETURN_IF_ERROR(StreamOf(c, &stream_));
    const InContext context(stream_);
    TF_RETURN_IF_ERROR(context.status);
    Module module;
    TF_RETURN_IF_ERROR(Checked(driver().ModuleLoadData(&module, program_.data()), "program of a step"));
    const absl::Status found = Checked(driver().ModuleGetFunction(&step_, module, "afm_step"), "afm_step");
    if (!found.ok()) {
      driver().ModuleUnload(module);
      return found;
    }
    module_ = module;
    return absl::OkStatus();
  }

  // Whoever else holds the variable's numbers keeps them as they are.
  absl::Status Own(OpKernelContext* c, Var* variable) {
    if (variable->tensor()->RefCountIsOne()) return absl::OkStatus();
    Tensor copy;
    TF_RETURN_IF_ERROR(c->allocate_temp(DT_FLOAT, variable->tensor()->shape(), &copy));
    TF_RETURN_IF_ERROR(
        Checked(driver().MemcpyDtoDAsync(reinterpret_cast<uint64_t>(copy.flat<float>().data()),
                                         reinterpret_cast<uint64_t>(variable->tensor()->flat<float>().data()),
                                         copy.TotalBytes(), stream_),
                "copy of a variable"));
    *variable->tensor() = copy;
    return absl::OkStatus();
  }

  int variables_ = 1;
  bool whole_ = false;
  std::string program_;
  std::mutex mutex_;
  Module module_ = nullptr;
  Function step_ = nullptr;
  Stream stream_ = nullptr;  // the device's compute stream, the same in every call
};

REGISTER_OP("AfmCtrStepOnGpu")
    .Input("variables: N * resource")
    .Input("rows: int64")
    .Input("gradient: float")
    .Input("options: float")
    .Input("counts: bool")
    .Attr("N: int >= 1")
    .Attr("whole: bool")
    .Attr("program: string")
    .SetIsStateful()
    .SetShapeFn(shape_inference::NoOutputs);
REGISTER_KERNEL_BUILDER(Name("AfmCtrStepOnGpu").Device(DEVICE_GPU).HostMemory("variables"), GpuStepOp);

}  // namespace
}  // namespace afm_ctr
