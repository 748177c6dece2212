// The workspace of a thread, the pairs of a row, and the scores of a block of them.
//
// Included by kernel.h alone, once an instruction set. Matrices of a block are kept in panels: L columns wide, each
// row of a panel one vector, the rows side by side. So every address inside the loops is a pointer and a constant.
#ifndef AFM_CTR_NATIVE_BLOCK_H_
#define AFM_CTR_NATIVE_BLOCK_H_

#include "lanes.h"
#include "problem.h"

namespace afm_ctr {
namespace {

constexpr int PAIRS = 128;  // of a block

// Whole tiles of n pairs; whole tiles and whole vectors.
AFM_INLINE int tiled(int n) { return (n + TILE - 1) / TILE * TILE; }
AFM_INLINE int filled(int n) { return L > TILE ? (n + L - 1) / L * L : tiled(n); }

typedef uint16_t units;          // a bit for each of WORD units of the hidden layer, whether it is above 0
constexpr int WORD = 16, SPAN = WORD / L;
constexpr int GROUP = 4;         // units whose subsets have a table of sums
constexpr int SUBSETS = 1 << GROUP;
constexpr int WIDE = 2;          // panels of vectors that the backward pass takes at once

struct Space {
  int64_t kw, tw, words;   // widths in panels, and of the hidden layer in words
  int64_t groups;          // of units
  float *W, *b, *h;        // W in panels [tw][k], padded
  float *subsets;          // of units: the sums of their rows of diag(h) W^T, the sums of ds e of the pairs in which
                           // they alone of a group are above 0 [kw][groups][SUBSETS][2]
  float *db;               // [tw * L]
  float *u, *du;           // [slots, kw * L]
  float *E, *R;            // a block: the products, sums of rows of hW [kw][PAIRS], [WIDE][PAIRS]
  float *w, *ds, *ge;      // a block: weights, gradients by the scores, products with the upstream gradient [PAIRS]
  float *s;                // a block: scores [PAIRS], and then `above`; here, or where it is kept
  units *above;            // a block: which of a pair's hidden layer is above 0 [words][PAIRS]
  float *g, *pooled;       // [kw * L], by slot [slots, kw * L]
  const int32_t *i, *j;    // a block: its pairs [PAIRS]
  int32_t *some;           // room for i, j and places in the list [3, PAIRS], where not all pairs are present
  int32_t first;           // the place of a block's first pair, where all are
};

// Floats of the scores of a block and of what is above 0.
AFM_INLINE int64_t scored(int64_t words) { return PAIRS + words * PAIRS * static_cast<int64_t>(sizeof(units)) / 4; }
AFM_INLINE int64_t words_of(int64_t t) { return (t + WORD - 1) / WORD; }

AFM_INLINE void keep_scores(Space* X, float* at) {
  X->s = at;
  X->above = reinterpret_cast<units*>(at + PAIRS);
}

int64_t kept(const Problem& P) { return (P.pairs + PAIRS - 1) / PAIRS * scored(words_of(P.t)); }

// Lay out the workspace; returns its size in floats.
size_t lay_out(const Problem& P, float* at, Space* X) {
  const int64_t kw = panels(P.k), tw = panels(P.t), kp = kw * L, tp = tw * L, sums = P.by_slot ? P.slots * kp : kp;
  const float* const start = at;
  auto take = [&at](int64_t n) {
    float* here = at;
    at += (n + 15) / 16 * 16;
    return here;
  };
  const int64_t words = words_of(P.t), groups = (P.t + GROUP - 1) / GROUP, subsets = kw * groups * SUBSETS * 2 * L;
  *X = Space{kw, tw, words, groups, take(P.k * tp), take(tp), take(tp), take(subsets), take(tp),
             take(P.slots * kp), take(P.slots * kp), take(kp * PAIRS), take(WIDE * L * PAIRS), take(PAIRS), take(PAIRS),
             take(PAIRS), nullptr, nullptr, take(sums), take(sums), nullptr, nullptr, nullptr, 0};
  keep_scores(X, take(scored(words)));
  X->some = reinterpret_cast<int32_t*>(take(3 * PAIRS));
  return at - start;
}

size_t workspace(const Problem& P) {
  Space X;
  return lay_out(P, nullptr, &X);
}

Space prepare(const Problem& P, float* memory) {
  Space X;
  memset(memory, 0, lay_out(P, memory, &X) * sizeof(float));
  for (int64_t x = 0; x < P.k; x++)
    for (int64_t y = 0; y < P.t; y++) X.W[(y / L * P.k + x) * L + y % L] = P.W[x * P.t + y];
  memcpy(X.b, P.b, P.t * sizeof(float));
  memcpy(X.h, P.h, P.t * sizeof(float));
  return X;
}

// One row's vectors, padded to whole panels, and whether all its slots are present.
struct Row {
  const float* u;
  const bool* present;
  bool full;
  uint64_t key;
};

AFM_INLINE Row open_row(const Problem& P, const Space& X, int64_t n) {
  Row row{P.u + n * P.slots * P.k, P.present + n * P.slots, true, 0};
  for (int64_t f = 0; f < P.slots; f++) row.full &= row.present[f];
  if (P.threshold) row.key = mix(static_cast<uint64_t>(P.rows[n]) * GOLDEN + P.base);
  if (P.k % L || reinterpret_cast<uintptr_t>(row.u) % (L * 4)) {
    for (int64_t f = 0; f < P.slots; f++) memcpy(X.u + f * X.kw * L, row.u + f * P.k, P.k * sizeof(float));
    row.u = X.u;
  }
  return row;
}

// The next pairs of present slots, at most PAIRS of them, from place *next of the list on; returns how many.
// Up to a whole tile there are pairs of slot 0 beyond them, or others.
AFM_INLINE int next_pairs(const Problem& P, Space* X, const Row& row, int64_t* next) {
  int64_t q = *next;
  if (row.full) {
    const int n = static_cast<int>(smaller(PAIRS, P.pairs - q));
    X->i = P.i + q;
    X->j = P.j + q;
    X->first = static_cast<int32_t>(q);
    *next = q + n;
    return n;
  }
  int n = 0;
  int32_t *const i = X->some, *const j = i + PAIRS, *const number = j + PAIRS;
  for (; q < P.pairs && n < PAIRS; q++) {
    i[n] = P.i[q];
    j[n] = P.j[q];
    number[n] = static_cast<int32_t>(q);
    n += row.present[i[n]] & row.present[j[n]];
  }
  X->i = i;
  X->j = j;
  *next = q;
  return n;
}

AFM_INLINE int64_t count_pairs(const Problem& P, const Row& row) {
  if (row.full) return P.pairs;
  int64_t n = 0;
  for (int64_t q = 0; q < P.pairs; q++) n += row.present[P.i[q]] & row.present[P.j[q]];
  return n;
}

// TILE rows of a product: c[r] += sum over x < depth of A[r][x] * B[x], with A in panels of PAIRS rows.
AFM_INLINE void product(const float* A, const float* B, int64_t depth, vec (&c)[TILE]) {
  auto add = [&](int64_t x) __attribute__((always_inline)) {
    const vec row = load(B + x * L);
    AFM_UNROLL
    for (int r = 0; r < TILE; r++) c[r] += A[r * L + x] * row;
  };
  for (; depth >= L; depth -= L, A += PAIRS * L, B += L * L) {
    AFM_UNROLL
    for (int x = 0; x < L; x++) add(x);
  }
  for (int64_t x = 0; x < depth; x++) add(x);
}

// The gradient by what pair q adds to the sums: g, by slot g_i + g_j; panel x.
template <bool BY_SLOT>
AFM_INLINE vec upstream_of(const Space& X, int q, int64_t x) {
  const float* const g = X.g + x * L;
  return BY_SLOT ? load(g + X.i[q] * X.kw * L) + load(g + X.j[q] * X.kw * L) : load(g);
}

// A tile of E from pair q on.
AFM_INLINE void multiply(const Space& X, const Row& row, int64_t q) {
  const int64_t stride = X.kw * L;
  const int32_t *const i = X.i + q, *const j = X.j + q;
  for (int64_t x = 0; x < X.kw; x++) {
    const float* const u = row.u + x * L;
    float* const E = X.E + (x * PAIRS + q) * L;
    AFM_UNROLL
    for (int r = 0; r < TILE; r++) store(E + r * L, load(u + i[r] * stride) * load(u + j[r] * stride));
  }
}

// What a tile of E is scored by: R, whose lanes are still to be added up, and what is above 0.
AFM_INLINE void hidden(const Problem& P, const Space& X, int64_t q) {
  for (int64_t y = 0; y < X.tw; y++) {
    const vec b = load(X.b + y * L), h = load(X.h + y * L);
    units* const above = X.above + y / SPAN * PAIRS + q;
    float* const R = X.R + q * L;
    vec c[TILE];
    AFM_UNROLL
    for (int r = 0; r < TILE; r++) c[r] = b;
    product(X.E + q * L, X.W + y * P.k * L, P.k, c);
    AFM_UNROLL
    for (int r = 0; r < TILE; r++) {
      const units some = static_cast<units>(above_zero(c[r]) << y % SPAN * L);
      // By itself: joining the bits of neighbours takes longer than to store them.
      __atomic_store_n(above + r, y % SPAN ? above[r] | some : some, __ATOMIC_RELAXED);
      store(R + r * L, relu(c[r]) * h + (y ? load(R + r * L) : vec{}));
    }
  }
}

// E, s (-inf beyond the n pairs) and what is above 0. Three tiles are under way at a time, so that the processor need
// not wait for the products of a tile before its multiplication, nor for that before its sums over the lanes.
AFM_INLINE void score(const Problem& P, const Space& X, const Row& row, int n) {
  const int64_t end = tiled(n);
  multiply(X, row, 0);
  for (int64_t q = 0; q <= end; q += TILE) {
    if (q + TILE < end) multiply(X, row, q + TILE);
    if (q < end) hidden(P, X, q);
    if (q > 0) {
      vec sums[TILE];
      AFM_UNROLL
      for (int r = 0; r < TILE; r++) sums[r] = load(X.R + (q - TILE + r) * L);
      sums_of_tile(sums, X.s + q - TILE);
    }
  }
  for (int q = n; q < filled(n); q++) X.s[q] = -INFINITY;
}

// ge = g . e
template <bool BY_SLOT>
AFM_INLINE void against_upstream(const Space& X, const Row& row, int n) {
  const int64_t stride = X.kw * L;
  for (int q = 0; q < tiled(n); q += TILE) {
    vec dots[TILE];
    AFM_UNROLL
    for (int r = 0; r < TILE; r++) dots[r] = vec{};
    for (int64_t x = 0; x < X.kw; x++) {
      const float* const u = row.u + x * L;
      AFM_UNROLL
      for (int r = 0; r < TILE; r++)
        dots[r] += load(u + X.i[q + r] * stride) * load(u + X.j[q + r] * stride) * upstream_of<BY_SLOT>(X, q + r, x);
    }
    sums_of_tile(dots, X.ge + q);
  }
}

AFM_INLINE void drop(const Problem& P, const Space& X, const Row& row, int n) {
  for (int q = 0; q < n; q++) {
    const uint64_t number = row.full ? X.first + q : X.some[2 * PAIRS + q];
    const uint64_t bits = mix(row.key + (number + 1) * GOLDEN);
    X.w[q] = static_cast<int32_t>(bits >> 40) < P.threshold ? 0.0f : X.w[q] * P.keep_scale;
  }
}

}  // namespace
}  // namespace afm_ctr

#endif  // AFM_CTR_NATIVE_BLOCK_H_
