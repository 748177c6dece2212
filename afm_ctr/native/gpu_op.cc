// Attentional pooling on NVIDIA GPUs: what gpu.py had compiled by NVRTC is launched on TensorFlow's own stream.
#include <algorithm>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "gpu_driver.h"

namespace afm_ctr {
namespace {

using namespace tensorflow;  // NOLINT: the names of every op

// The kernels' first parameter, as in pooling.cu.
struct Arguments {
  const float *u, *W, *b, *h;
  const bool* present;
  const int64_t* rows;
  const int32_t* plan;
  int32_t batch, threshold, scale_by_pairs;
  float keep;
  uint64_t base;
};

class GpuPoolingBase : public OpKernel {
 public:
  explicit GpuPoolingBase(OpKernelConstruction* c) : OpKernel(c) {
    int64_t threshold, key;
    std::vector<int64_t> sizes;
    OP_REQUIRES_OK(c, c->GetAttr("scale_by_pairs", &scale_by_pairs_));
    OP_REQUIRES_OK(c, c->GetAttr("by_slot", &by_slot_));
    OP_REQUIRES_OK(c, c->GetAttr("threshold", &threshold));
    OP_REQUIRES_OK(c, c->GetAttr("keep_scale", &keep_));
    OP_REQUIRES_OK(c, c->GetAttr("key", &key));
    OP_REQUIRES_OK(c, c->GetAttr("gpu_program", &program_));
    OP_REQUIRES_OK(c, c->GetAttr("gpu_plan", &plan_));
    OP_REQUIRES_OK(c, c->GetAttr("gpu_sizes", &sizes));
    OP_REQUIRES(c, !program_.empty() && sizes.size() == 11,
                absl::FailedPreconditionError("attentional pooling: this op was made for a CPU, not for a GPU"));
    slots_ = sizes[0], k_ = sizes[1], t_ = sizes[2], threads_forward_ = sizes[3], threads_backward_ = sizes[4];
    rows_ = sizes[5], chunks_ = sizes[6], sums_ = sizes[7], collect_threads_ = sizes[8];
    shared_forward_ = sizes[9], shared_backward_ = sizes[10];
    threshold_ = static_cast<int32_t>(threshold);
    key_ = static_cast<uint64_t>(key);
  }

  ~GpuPoolingBase() override {
    if (module_ == nullptr) return;
    const InContext context(stream_);
    if (context.status.ok()) driver().ModuleUnload(module_);
  }

 protected:
  // Checks the inputs and describes them; loads the program and copies the plan if this is the first call.
  absl::Status Ready(OpKernelContext* c, Arguments* arguments) {
    const Tensor &u = c->input(0), &present = c->input(1), &W = c->input(2), &b = c->input(3), &h = c->input(4);
    const Tensor& rows = c->input(5);
    const int64_t batch = u.dims() == 3 ? u.dim_size(0) : 0;
    if (u.shape() != TensorShape({batch, slots_, k_}) || present.shape() != TensorShape({batch, slots_}) ||
        W.shape() != TensorShape({k_, t_}) || b.shape() != TensorShape({t_}) || h.shape() != TensorShape({t_}) ||
        (threshold_ && rows.shape() != TensorShape({batch})))
      return absl::InvalidArgumentError(absl::StrCat(
          "attentional pooling: compiled for u [batch, ", slots_, ", ", k_, "] and W [", k_, ", ", t_, "], got ",
          u.shape().DebugString(), " and ", W.shape().DebugString(), ", or another input does not fit these"));
    if (batch > INT32_MAX) return absl::InvalidArgumentError("attentional pooling: more than 2^31 - 1 rows");
    Stream stream;
    TF_RETURN_IF_ERROR(StreamOf(c, &stream));
    const std::lock_guard<std::mutex> lock(mutex_);
    if (module_ == nullptr) TF_RETURN_IF_ERROR(Load(c, stream));
    *arguments = {u.flat<float>().data(), W.flat<float>().data(), b.flat<float>().data(), h.flat<float>().data(),
                  present.flat<bool>().data(), rows.flat<int64_t>().data(), on_device_.flat<int32_t>().data(),
                  static_cast<int32_t>(batch), threshold_, scale_by_pairs_, keep_, key_};
    return absl::OkStatus();
  }

  absl::Status Launch(Function function, int64_t blocks, int64_t threads, int64_t shared, void** parameters) {
    const InContext context(stream_);
    TF_RETURN_IF_ERROR(context.status);
    return Checked(driver().LaunchKernel(function, blocks, 1, 1, threads, 1, 1, shared, stream_, parameters, nullptr),
                   "launch");
  }

  TensorShape PooledShape(int64_t batch) const {
    return by_slot_ ? TensorShape({batch, slots_, k_}) : TensorShape({batch, k_});
  }

  int64_t slots_ = 0, k_ = 0, t_ = 0, threads_forward_ = 0, threads_backward_ = 0, rows_ = 1, chunks_ = 1;
  int64_t sums_ = 0, collect_threads_ = 0;
  int64_t shared_forward_ = 0, shared_backward_ = 0;
  Function forward_ = nullptr, backward_ = nullptr, collect_ = nullptr;

 private:
  absl::Status Load(OpKernelContext* c, Stream stream) {
    const InContext context(stream);
    TF_RETURN_IF_ERROR(context.status);
    TF_RETURN_IF_ERROR(c->allocate_temp(DT_INT32, TensorShape({static_cast<int64_t>(plan_.size() / 4)}), &on_device_));
    Module module;
    TF_RETURN_IF_ERROR(Checked(driver().ModuleLoadData(&module, program_.data()), "program"));
    auto find = [&](Function* function, const char* name, int64_t shared) {
      TF_RETURN_IF_ERROR(Checked(driver().ModuleGetFunction(function, module, name), name));
      constexpr int kMaxDynamicSharedSizeBytes = 8;
      return Checked(driver().FuncSetAttribute(*function, kMaxDynamicSharedSizeBytes, static_cast<int>(shared)), name);
    };
    absl::Status loaded = find(&forward_, "afm_forward", shared_forward_);
    if (loaded.ok()) loaded = find(&backward_, "afm_backward", shared_backward_);
    if (loaded.ok()) loaded = find(&collect_, "afm_collect", 4 * collect_threads_);
    if (loaded.ok())
      loaded = Checked(driver().MemcpyHtoDAsync(reinterpret_cast<uint64_t>(on_device_.flat<int32_t>().data()),
                                                plan_.data(), plan_.size(), stream),
                       "plan");
    if (!loaded.ok()) {
      driver().ModuleUnload(module);
      return loaded;
    }
    module_ = module;
    stream_ = stream;
    return absl::OkStatus();
  }

  bool scale_by_pairs_ = false, by_slot_ = false;
  int32_t threshold_ = 0;
  float keep_ = 1;
  uint64_t key_ = 0;
  std::string program_, plan_;
  Tensor on_device_;
  std::mutex mutex_;
  Module module_ = nullptr;
  Stream stream_ = nullptr;  // the device's compute stream, the same in every call
};

class GpuPoolingOp : public GpuPoolingBase {
 public:
  using GpuPoolingBase::GpuPoolingBase;

  void Compute(OpKernelContext* c) override {
    Arguments arguments;
    OP_REQUIRES_OK(c, Ready(c, &arguments));
    const int64_t batch = arguments.batch;
    Tensor *pooled, *lse, *kept;
    OP_REQUIRES_OK(c, c->allocate_output(0, PooledShape(batch), &pooled));
    OP_REQUIRES_OK(c, c->allocate_output(1, TensorShape({batch}), &lse));
    OP_REQUIRES_OK(c, c->allocate_output(2, TensorShape({0, 0}), &kept));  // of CPUs alone
    if (batch == 0) return;
    float *to_pooled = pooled->flat<float>().data(), *to_lse = lse->flat<float>().data();
    void* parameters[] = {&arguments, &to_pooled, &to_lse};
    OP_REQUIRES_OK(c, Launch(forward_, (batch + rows_ - 1) / rows_, threads_forward_, shared_forward_, parameters));
  }
};

class GpuPoolingGradOp : public GpuPoolingBase {
 public:
  using GpuPoolingBase::GpuPoolingBase;

  void Compute(OpKernelContext* c) override {
    Arguments arguments;
    OP_REQUIRES_OK(c, Ready(c, &arguments));
    const int64_t batch = arguments.batch;
    const Tensor &pooled = c->input(7), &lse = c->input(8), &upstream = c->input(10);
    OP_REQUIRES(c, pooled.shape() == PooledShape(batch) && upstream.shape() == pooled.shape() &&
                       lse.shape() == TensorShape({batch}),
                absl::InvalidArgumentError("attentional pooling: pooled, its gradient and lse must have u's batch"));
    Tensor* by[4];
    OP_REQUIRES_OK(c, c->allocate_output(0, c->input(0).shape(), &by[0]));
    for (int i = 1; i < 4; i++) OP_REQUIRES_OK(c, c->allocate_output(i, c->input(i + 1).shape(), &by[i]));
    // As chunk_rows in gpu_plan.py. No rows: no chunks, and collecting them gives zeros.
    const int64_t most = rows_ * chunks_, per = rows_ * std::max<int64_t>(1, (batch + most - 1) / most);
    int32_t per_chunk = static_cast<int32_t>(per), chunks = static_cast<int32_t>((batch + per - 1) / per);
    Tensor partial;
    OP_REQUIRES_OK(c, c->allocate_temp(DT_FLOAT, TensorShape({chunks, sums_}), &partial));
    const float *from_pooled = pooled.flat<float>().data(), *from_lse = lse.flat<float>().data();
    const float* from_upstream = upstream.flat<float>().data();
    float *du = by[0]->flat<float>().data(), *sums = partial.flat<float>().data();
    float *dW = by[1]->flat<float>().data(), *db = by[2]->flat<float>().data(), *dh = by[3]->flat<float>().data();
    void* parameters[] = {&arguments, &from_pooled, &from_lse, &from_upstream, &du, &sums, &chunks, &per_chunk};
    if (chunks > 0) OP_REQUIRES_OK(c, Launch(backward_, chunks, threads_backward_, shared_backward_, parameters));
    void* collected[] = {&arguments, &sums, &chunks, &dW, &db, &dh};
    OP_REQUIRES_OK(c, Launch(collect_, t_, collect_threads_, 4 * collect_threads_, collected));
  }
};

REGISTER_KERNEL_BUILDER(Name("AfmCtrPooling").Device(DEVICE_GPU).HostMemory("pairs"), GpuPoolingOp);
REGISTER_KERNEL_BUILDER(Name("AfmCtrPoolingGrad").Device(DEVICE_GPU).HostMemory("pairs"), GpuPoolingGradOp);

}  // namespace
}  // namespace afm_ctr
