// Vectors of L lanes, in GCC's vector extension, and the little mathematics on them.
//
// Included by kernel.h alone, once an instruction set; AFM_LANES says how many floats a register holds.
#ifndef AFM_CTR_NATIVE_LANES_H_
#define AFM_CTR_NATIVE_LANES_H_

#include <math.h>
#include <stdint.h>
#include <string.h>
#if AFM_LANES > 4
#include <immintrin.h>
#endif

namespace afm_ctr {
namespace {

constexpr int L = AFM_LANES;
constexpr int TILE = 8;  // pairs whose sums are held in registers
typedef float vec __attribute__((vector_size(L * 4), aligned(L * 4), may_alias));
typedef int32_t ivec __attribute__((vector_size(L * 4), may_alias));

#define AFM_INLINE inline __attribute__((always_inline))
#define AFM_UNROLL _Pragma("GCC unroll 16")

AFM_INLINE vec load(const float* p) { return *reinterpret_cast<const vec*>(p); }
AFM_INLINE void store(float* p, vec v) { *reinterpret_cast<vec*>(p) = v; }
AFM_INLINE vec all(float x) { return x - vec{}; }
AFM_INLINE int64_t panels(int64_t n) { return (n + L - 1) / L; }
AFM_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// The larger of x and 0; NaN stays NaN.
#if AFM_LANES == 16
AFM_INLINE vec relu(vec x) { return reinterpret_cast<vec>(_mm512_max_ps(__m512{}, reinterpret_cast<__m512>(x))); }
#elif AFM_LANES == 8
AFM_INLINE vec relu(vec x) { return reinterpret_cast<vec>(_mm256_max_ps(__m256{}, reinterpret_cast<__m256>(x))); }
#else
AFM_INLINE vec relu(vec x) { return x < 0.0f ? vec{} : x; }
#endif

// A bit a lane.
#if AFM_LANES == 16
typedef uint16_t lanes;
AFM_INLINE lanes above_zero(vec x) {
  return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(x), __m512{}, _CMP_GT_OQ);
}
AFM_INLINE vec only(lanes some, vec x) {
  return reinterpret_cast<vec>(_mm512_maskz_mov_ps(some, reinterpret_cast<__m512>(x)));
}
#else
typedef uint8_t lanes;
AFM_INLINE lanes above_zero(vec x) {
#if AFM_LANES == 8
  return _mm256_movemask_ps(_mm256_cmp_ps(reinterpret_cast<__m256>(x), __m256{}, _CMP_GT_OQ));
#else
  lanes some = 0;
  for (int lane = 0; lane < L; lane++) some |= (x[lane] > 0.0f) << lane;
  return some;
#endif
}
AFM_INLINE vec only(lanes some, vec x) {
  ivec bit;
  for (int lane = 0; lane < L; lane++) bit[lane] = 1 << lane;
  return (bit & some) != 0 ? x : vec{};
}
#endif

// Sums of neighbouring lanes: of x in the lower half of the result, of y in the upper half.
AFM_INLINE vec fold(vec x, vec y) {
  ivec even, odd;
  for (int i = 0; i < L; i++) {
    even[i] = 2 * i;
    odd[i] = 2 * i + 1;
  }
  return __builtin_shuffle(x, y, even) + __builtin_shuffle(x, y, odd);
}

AFM_INLINE float sum(vec v) {
  for (int width = L; width > 1; width /= 2) v = fold(v, v);
  return v[0];
}

// to[0 .. TILE) = the sums over the lanes of TILE vectors.
AFM_INLINE void sums_of_tile(vec (&v)[TILE], float* to) {
  static_assert(TILE == 8, "three steps of folding");
  for (int i = 0; i < 4; i++) v[i] = fold(v[2 * i], v[2 * i + 1]);
  for (int i = 0; i < 2; i++) v[i] = fold(v[2 * i], v[2 * i + 1]);
  if (L == 4) {
    memcpy(to, &v[0], sizeof(vec));
    memcpy(to + L, &v[1], sizeof(vec));
    return;
  }
  vec sums = fold(v[0], v[1]);
  if (L == 16) sums = fold(sums, sums);
  memcpy(to, &sums, TILE * sizeof(float));
}

// exp(x) for x <= 0 or a little above, within 2 units in the last place; 0 below the range of normal numbers.
// Cephes' polynomial (Moshier) on the argument reduced by multiples of ln 2.
AFM_INLINE vec exponential(vec x) {
  const ivec normal = ~(x < -87.0f);  // NaN counts as in range, and stays NaN
  x = normal ? x : vec{};
  const vec shifted = x * 1.44269504088896341f + 12582912.0f;  // adding 1.5 * 2^23 rounds to an integer
  const ivec exponent = reinterpret_cast<const ivec&>(shifted) - 0x4B400000;
  const vec whole = shifted - 12582912.0f;
  x = x - whole * 0.693359375f;
  x = x - whole * -2.12194440e-4f;
  vec y = all(1.9875691500e-4f);
  y = y * x + 1.3981999507e-3f;
  y = y * x + 8.3334519073e-3f;
  y = y * x + 4.1665795894e-2f;
  y = y * x + 1.6666665459e-1f;
  y = y * x + 5.0000001201e-1f;
  y = y * (x * x) + x + 1.0f;
  const ivec power = (exponent + 127) << 23;
  return normal ? y * reinterpret_cast<const vec&>(power) : vec{};
}

AFM_INLINE uint64_t mix(uint64_t x) {  // the finaliser of splitmix64
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}
constexpr uint64_t GOLDEN = 0x9E3779B97F4A7C15ull;

}  // namespace
}  // namespace afm_ctr

#endif  // AFM_CTR_NATIVE_LANES_H_
