// The GPU's kernels on the CPU: every thread of a block a thread here, the blocks one after the other.
//
// To be compiled with -DPROGRAM="the text that NVRTC would get"; shared memory begins as NaN in every block.
#include <barrier>
#include <bit>
#include <cmath>
#include <cstring>
#include <cstdio>
#include <memory>
#include <random>
#include <thread>
#include <type_traits>
#include <vector>

#define AFM_ON_CPU
#define __device__
#define __global__
#define __launch_bounds__(...)

namespace {

struct alignas(16) float4 {
  float x, y, z, w;
};
struct float2 {
  float x, y;
};
float2 make_float2(float x, float y) { return {x, y}; }

struct Index {
  int x;
};
thread_local Index threadIdx, blockIdx;
Index gridDim;

std::unique_ptr<std::barrier<>> block_gate;
std::vector<std::unique_ptr<std::barrier<>>> warp_gates;
std::vector<unsigned> exchanged;
std::vector<float4> shared;

int __popc(unsigned bits) { return std::popcount(bits); }
unsigned __float_as_uint(float number) { return std::bit_cast<unsigned>(number); }
unsigned __funnelshift_l(unsigned low, unsigned high, int places) { return high << places | low >> (32 - places); }

template <typename Value>
Value __shfl_xor_sync(unsigned, Value value, int lanes) {
  static_assert(sizeof(Value) == 4);
  const int thread = threadIdx.x;
  auto& gate = *warp_gates[thread / 32];
  exchanged[thread] = std::bit_cast<unsigned>(value);
  gate.arrive_and_wait();
  const Value other = std::bit_cast<Value>(exchanged[thread ^ lanes]);
  gate.arrive_and_wait();
  return other;
}

#define AFM_SYNC() block_gate->arrive_and_wait()
#define AFM_SHARED(name) float* const name = &shared[0].x
#include PROGRAM

template <class Kernel>
void launch(int grid, int threads, int shared_bytes, Kernel kernel) {
  gridDim.x = grid;
  const float nan = std::nanf("");
  block_gate = std::make_unique<std::barrier<>>(threads);
  warp_gates.clear();
  for (int warp = 0; warp < threads / 32; warp++) warp_gates.push_back(std::make_unique<std::barrier<>>(32));
  exchanged.assign(threads, 0);
  std::vector<std::thread> running;
  shared.assign((shared_bytes + 15) / 16, float4{nan, nan, nan, nan});
  for (int thread = 0; thread < threads; thread++)
    running.emplace_back([=] {
      threadIdx.x = thread;
      for (int block = 0; block < grid; block++) {
        blockIdx.x = block;
        kernel();
        AFM_SYNC();
        if (thread == 0) shared.assign(shared.size(), float4{nan, nan, nan, nan});
        AFM_SYNC();
      }
    });
  for (auto& thread : running) thread.join();
}

}  // namespace

extern "C" void run_forward(const void* arguments, int grid, int shared_bytes, float* pooled, float* lse) {
  launch(grid, NF, shared_bytes, [=] { afm_forward(*(const Arguments*)arguments, pooled, lse); });
}

extern "C" void run_backward(const void* arguments, int grid, int shared_bytes, const float* pooled, const float* lse,
                             const float* upstream, float* du, float* partial, int chunks, int per_chunk) {
  launch(grid, N, shared_bytes, [=] {
    afm_backward(*(const Arguments*)arguments, pooled, lse, upstream, du, partial, chunks, per_chunk);
  });
}

extern "C" void run_collect(const void* arguments, const float* partial, int chunks, float* dW, float* db, float* dh) {
  launch(TR, COLLECT, 4 * COLLECT, [=] { afm_collect(*(const Arguments*)arguments, partial, chunks, dW, db, dh); });
}

#ifdef AFM_MAIN
// A run on random numbers, for a sanitizer: the plan's file, the rows of the batch.
int main(int, char** argv) {
  std::FILE* const file = std::fopen(argv[1], "rb");
  std::vector<int> plan(1 << 20);
  plan.resize(std::fread(plan.data(), sizeof(int), plan.size(), file));
  std::fclose(file);
  const int batch = std::atoi(argv[2]), chunks = (batch + R - 1) / R, by = BY_SLOT ? F * KR : KR;
  std::mt19937 random(1);
  auto some = [&](int count) {
    std::normal_distribution<float> normal;
    std::vector<float> values(count);
    for (float& value : values) value = normal(random);
    return values;
  };
  auto u = some(batch * F * KR), W = some(KR * TR), b = some(TR), h = some(TR), upstream = some(batch * by);
  auto pooled = some(batch * by), lse = some(batch), du = u, dW = W, db = b, dh = h;
  auto partial = some(chunks * T * (K + 1));
  std::vector<unsigned char> present(batch * F, 1);
  std::vector<long long> rows(batch, 5);
  const Arguments A{u.data(), W.data(), b.data(), h.data(), present.data(), rows.data(), plan.data(), batch, 1 << 22,
                    1,        4 / 3.0f, 99};
  run_forward(&A, 2, std::atoi(argv[3]), pooled.data(), lse.data());
  run_backward(&A, 2, std::atoi(argv[4]), pooled.data(), lse.data(), upstream.data(), du.data(), partial.data(),
               chunks, R);
  run_collect(&A, partial.data(), chunks, dW.data(), db.data(), dh.data());
  std::printf("%g %g %g\n", pooled[0], du[0], dW[0]);
}
#endif
