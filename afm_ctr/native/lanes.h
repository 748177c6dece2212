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
typedef float vec __attribute__((vector_size(L * 4), aligned(L * 4), may_alias));
typedef float loose __attribute__((vector_size(L * 4), aligned(4), may_alias));  // anywhere in memory
typedef int32_t ivec __attribute__((vector_size(L * 4), aligned(L * 4), may_alias));
typedef uint64_t wide __attribute__((vector_size(L * 4), aligned(L * 4), may_alias));  // half as many

#define AFM_INLINE inline __attribute__((always_inline))
#define AFM_APART __attribute__((noinline))
#define AFM_UNROLL _Pragma("GCC unroll 16")

AFM_INLINE vec load(const float* p) { return *reinterpret_cast<const vec*>(p); }
AFM_INLINE void store(float* p, vec v) { *reinterpret_cast<vec*>(p) = v; }
AFM_INLINE ivec load(const int32_t* p) { return *reinterpret_cast<const ivec*>(p); }
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

// Adds a bit to the lanes whose x is above 0; and x of the lanes that have a bit, 0 of the others, where the first lane
// has bit `first`.
#if AFM_LANES == 16
AFM_INLINE ivec mark(ivec bits, vec x, int32_t bit) {
  const __mmask16 above = _mm512_cmp_ps_mask(reinterpret_cast<__m512>(x), __m512{}, _CMP_GT_OQ);
  const __m512i before = reinterpret_cast<__m512i>(bits);
  return reinterpret_cast<ivec>(_mm512_mask_or_epi32(before, above, before, _mm512_set1_epi32(bit)));
}
AFM_INLINE vec only(uint16_t some, int, vec x) {
  return reinterpret_cast<vec>(_mm512_maskz_mov_ps(some, reinterpret_cast<__m512>(x)));
}
#else
AFM_INLINE ivec mark(ivec bits, vec x, int32_t bit) { return bits | ((x > 0.0f) & bit); }
AFM_INLINE vec only(uint16_t some, int first, vec x) {
  typedef uint16_t halves __attribute__((vector_size(L * 4)));
  ivec bit;
  for (int lane = 0; lane < L; lane++) bit[lane] = 1 << (first + lane);
  return (reinterpret_cast<ivec>(some - halves{}) & bit) == bit ? x : vec{};
}
#endif

// A bit for each number of x that is at least `least`; both below 2^63.
#if AFM_LANES == 16
AFM_INLINE int at_least(wide x, int64_t least) {
  return _mm512_cmp_epi64_mask(reinterpret_cast<__m512i>(x), _mm512_set1_epi64(least), _MM_CMPINT_NLT);
}
#elif AFM_LANES == 8
AFM_INLINE int at_least(wide x, int64_t least) {
  const __m256i below = _mm256_cmpgt_epi64(_mm256_set1_epi64x(least), reinterpret_cast<__m256i>(x));
  return _mm256_movemask_pd(reinterpret_cast<__m256d>(below)) ^ 15;
}
#else
AFM_INLINE int at_least(wide x, int64_t least) {
  int bits = 0;
  for (int lane = 0; lane < L / 2; lane++) bits |= (x[lane] >= static_cast<uint64_t>(least)) << lane;
  return bits;
}
#endif

// Numbers of two vectors; `of` gives the place of each, that of other's first number is L.
template <typename Of>
AFM_INLINE vec chosen(vec one, vec other, Of of) {
  ivec places;
  for (int lane = 0; lane < L; lane++) places[lane] = of(lane);
  return __builtin_shuffle(one, other, places);
}

// With `pick` of one half, 0 or 1, of two vectors: one step of a transposition, in one instruction.
template <int STEP, typename Pick>
AFM_INLINE void step(vec (&v)[L], Pick pick) {
  AFM_UNROLL
  for (int r = 0; r < L; r++) {
    if (r & STEP) continue;
    const vec one = v[r], other = v[r + STEP];
    v[r] = pick(one, other, 0);
    v[r + STEP] = pick(one, other, 1);
  }
}

// Lane i of vector j becomes lane j of vector i.
AFM_INLINE void transpose(vec (&v)[L]) {
  // Within each four numbers: a0 b0 a1 b1 and a2 b2 a3 b3, of which then two by two.
  step<1>(v, [](vec one, vec other, int half) __attribute__((always_inline)) {
    return chosen(one, other, [=](int lane) { return lane / 4 * 4 + half * 2 + lane % 4 / 2 + lane % 2 * L; });
  });
  step<2>(v, [](vec one, vec other, int half) __attribute__((always_inline)) {
    return chosen(one, other, [=](int lane) { return lane / 4 * 4 + half * 2 + lane % 2 + lane % 4 / 2 * L; });
  });
  AFM_UNROLL
  for (int r = 0; r < L; r += 4) {
    const vec between = v[r + 1];
    v[r + 1] = v[r + 2];
    v[r + 2] = between;
  }
  // And fours of numbers: the even or the odd ones of both.
  const auto fours = [](vec one, vec other, int half) __attribute__((always_inline)) {
    return chosen(one, other, [=](int lane) { return (lane / 4 * 2 + half) * 4 + lane % 4; });
  };
  if constexpr (L > 4) step<4>(v, fours);
  if constexpr (L > 8) step<8>(v, fours);
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

// The finaliser of splitmix64 but for its last step, which does not reach the upper 31 bits.
template <typename Number>
AFM_INLINE Number mix_upper(Number x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  return (x ^ (x >> 27)) * 0x94D049BB133111EBull;
}
AFM_INLINE uint64_t mix(uint64_t x) {
  x = mix_upper(x);
  return x ^ (x >> 31);
}
constexpr uint64_t GOLDEN = 0x9E3779B97F4A7C15ull;

}  // namespace
}  // namespace afm_ctr

#endif  // AFM_CTR_NATIVE_LANES_H_
