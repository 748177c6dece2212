// One step of an optimizer on a GPU, a thread for each number: compiled by NVRTC after rules.h, with RULE defined.
//
// `rows` are distinct, or null: then the gradient is of all numbers of the variable. `limit` is the number of rows; one
// that is not there is left out, as TensorFlow's scatters do on a GPU.
extern "C" __global__ void afm_step(float* weights, float* first, float* second, const long long* rows,
                                    const float* gradient, const float* options, const bool* counts, long long count,
                                    long long width, long long limit) {
  if (!*counts) return;
  using Rule = afm_ctr::RULE;
  float o[Rule::kOptions];
  for (int i = 0; i < Rule::kOptions; i++) o[i] = options[i];
  float* slots[2] = {first, second};
  const long long numbers = count * width, stride = (long long)gridDim.x * blockDim.x;
  for (long long n = (long long)blockIdx.x * blockDim.x + threadIdx.x; n < numbers; n += stride) {
    long long place = n;
    if (rows != nullptr) {
      const long long row = rows[n / width];
      if (row < 0 || row >= limit) continue;
      place = row * width + n % width;
    }
    Rule::Step(o, gradient[n], weights + place, slots, place);
  }
}
