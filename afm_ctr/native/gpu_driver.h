// NVIDIA's driver, as far as the ops need it. No header of CUDA and no library of it is needed to build or to load this:
// the driver is looked for at the first launch. Of its interface, whose ABI is stable, the few calls that are made are
// declared here.
#ifndef AFM_CTR_GPU_DRIVER_H_
#define AFM_CTR_GPU_DRIVER_H_

#include <dlfcn.h>

#include <cstdint>
#include <string>
#include <type_traits>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "xla/stream_executor/stream.h"

namespace afm_ctr {

typedef void *Module, *Function, *Context, *Stream;

// What goes wrong is kept as text: a machine without a GPU loads this library too.
struct Driver {
  int (*ModuleLoadData)(Module*, const void*);
  int (*ModuleUnload)(Module);
  int (*ModuleGetFunction)(Function*, Module, const char*);
  int (*FuncSetAttribute)(Function, int, int);
  int (*LaunchKernel)(Function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, Stream, void**,
                      void**);
  int (*StreamGetCtx)(Stream, Context*);
  int (*CtxPushCurrent)(Context);
  int (*CtxPopCurrent)(Context*);
  int (*MemcpyHtoDAsync)(uint64_t, const void*, size_t, Stream);
  int (*MemcpyDtoDAsync)(uint64_t, uint64_t, size_t, Stream);
  int (*GetErrorString)(int, const char**);
  std::string missing;

  Driver() {
    void* library = dlopen("libcuda.so.1", RTLD_NOW);
    if (library == nullptr) {
      missing = "the NVIDIA driver (libcuda.so.1) is not installed";
      return;
    }
    auto find = [&](auto& function, const char* name) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
      if (function == nullptr) missing = absl::StrCat("the NVIDIA driver has no ", name);
    };
    find(ModuleLoadData, "cuModuleLoadData");
    find(ModuleUnload, "cuModuleUnload");
    find(ModuleGetFunction, "cuModuleGetFunction");
    find(FuncSetAttribute, "cuFuncSetAttribute");
    find(LaunchKernel, "cuLaunchKernel");
    find(StreamGetCtx, "cuStreamGetCtx");
    find(CtxPushCurrent, "cuCtxPushCurrent_v2");
    find(CtxPopCurrent, "cuCtxPopCurrent_v2");
    find(MemcpyHtoDAsync, "cuMemcpyHtoDAsync_v2");
    find(MemcpyDtoDAsync, "cuMemcpyDtoDAsync_v2");
    find(GetErrorString, "cuGetErrorString");
  }
};

inline const Driver& driver() {
  static const Driver* const found = new Driver;
  return *found;
}

inline absl::Status Checked(int code, const char* what) {
  if (code == 0) return absl::OkStatus();
  const char* text = nullptr;
  driver().GetErrorString(code, &text);
  return absl::InternalError(
      absl::StrCat("on the GPU: ", what, ": ", text != nullptr ? text : "unknown error"));
}

// Makes the context of a stream the current one.
class InContext {
 public:
  explicit InContext(Stream stream) {
    Context own;
    status = Checked(driver().StreamGetCtx(stream, &own), "context of the stream");
    if (status.ok()) status = Checked(driver().CtxPushCurrent(own), "context");
    pushed_ = status.ok();
  }
  ~InContext() {
    Context own;
    if (pushed_) driver().CtxPopCurrent(&own);
  }
  absl::Status status;

 private:
  bool pushed_ = false;
};

// TensorFlow's own stream, on which an op of it launches.
inline absl::Status StreamOf(tensorflow::OpKernelContext* c, Stream* stream) {
  if (!driver().missing.empty()) return absl::FailedPreconditionError(driver().missing);
  auto* context = c->op_device_context();
  if (context == nullptr || context->stream() == nullptr) return absl::InternalError("no stream of a GPU");
  *stream = context->stream()->platform_specific_handle().stream;
  return absl::OkStatus();
}

}  // namespace afm_ctr

#endif  // AFM_CTR_GPU_DRIVER_H_
