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

struct Space {
  int64_t kw, tw;          // widths in panels
  float *W, *hW, *b, *h;   // W in panels [tw][k]; diag(h) times its transpose [kw][t], padded
  float *dW, *db;          // padded like W and b, before the product with h
  float *u, *du;           // [slots, kw * L]
  float *E, *R;            // a block: the products [kw][PAIRS], the gradients by the hidden layer [tw][PAIRS]
  float *w, *ds, *ge;      // a block: weights, gradients by the scores, products with the upstream gradient [PAIRS]
  float *s;                // a block: scores [PAIRS], and then `above`; here, or where it is kept
  lanes *above;            // a block: which of a pair's hidden layer is above 0 [tw][PAIRS]
  float *g, *pooled;       // [kw * L], by slot [slots, kw * L]
  int32_t *i, *j, *number; // a block: its pairs, and their places in the list [PAIRS]
};

// Floats of the scores of a block and of what is above 0.
AFM_INLINE int64_t scored(int64_t tw) { return PAIRS + tw * PAIRS * static_cast<int64_t>(sizeof(lanes)) / 4; }

AFM_INLINE void keep_scores(Space* X, float* at) {
  X->s = at;
  X->above = reinterpret_cast<lanes*>(at + PAIRS);
}

int64_t kept(const Problem& P) { return (P.pairs + PAIRS - 1) / PAIRS * scored(panels(P.t)); }

// Lay out the workspace; returns its size in floats.
size_t lay_out(const Problem& P, float* at, Space* X) {
  const int64_t kw = panels(P.k), tw = panels(P.t), kp = kw * L, tp = tw * L, sums = P.by_slot ? P.slots * kp : kp;
  const float* const start = at;
  auto take = [&at](int64_t n) {
    float* here = at;
    at += (n + 15) / 16 * 16;
    return here;
  };
  *X = Space{kw, tw, take(P.k * tp), take(P.t * kp), take(tp), take(tp), take(kp * tp), take(tp),
             take(P.slots * kp), take(P.slots * kp), take(kp * PAIRS), take(tp * PAIRS), take(PAIRS), take(PAIRS),
             take(PAIRS), nullptr, nullptr, take(sums), take(sums), nullptr, nullptr, nullptr};
  keep_scores(X, take(scored(tw)));
  X->i = reinterpret_cast<int32_t*>(take(PAIRS));
  X->j = reinterpret_cast<int32_t*>(take(PAIRS));
  X->number = reinterpret_cast<int32_t*>(take(PAIRS));
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
    for (int64_t y = 0; y < P.t; y++) {
      X.W[(y / L * P.k + x) * L + y % L] = P.W[x * P.t + y];
      X.hW[(x / L * P.t + y) * L + x % L] = P.h[y] * P.W[x * P.t + y];
    }
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
AFM_INLINE int next_pairs(const Problem& P, const Space& X, const Row& row, int64_t* next) {
  int n = 0;
  int64_t q = *next;
  if (row.full) {
    n = static_cast<int>(smaller(PAIRS, P.pairs - q));
    for (int r = 0; r < n; r++) {
      X.i[r] = P.pair[2 * (q + r)];
      X.j[r] = P.pair[2 * (q + r) + 1];
      X.number[r] = static_cast<int32_t>(q + r);
    }
    q += n;
  } else {
    for (; q < P.pairs && n < PAIRS; q++) {
      const int32_t i = P.pair[2 * q], j = P.pair[2 * q + 1];
      X.i[n] = i;
      X.j[n] = j;
      X.number[n] = static_cast<int32_t>(q);
      n += row.present[i] & row.present[j];
    }
  }
  *next = q;
  return n;
}

AFM_INLINE int64_t count_pairs(const Problem& P, const Row& row) {
  if (row.full) return P.pairs;
  int64_t n = 0;
  for (int64_t q = 0; q < P.pairs; q++) n += row.present[P.pair[2 * q]] & row.present[P.pair[2 * q + 1]];
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

// E, 0 beyond the n pairs.
AFM_INLINE void multiply(const Space& X, const Row& row, int n) {
  const int64_t stride = X.kw * L;
  for (int q = 0; q < n; q++) {
    const float *ui = row.u + X.i[q] * stride, *uj = row.u + X.j[q] * stride;
    for (int64_t x = 0; x < X.kw; x++) store(X.E + (x * PAIRS + q) * L, load(ui + x * L) * load(uj + x * L));
  }
  for (int q = n; q < tiled(n); q++)
    for (int64_t x = 0; x < X.kw; x++) store(X.E + (x * PAIRS + q) * L, vec{});
}

// s (-inf beyond the n pairs) and what is above 0, of E.
AFM_INLINE void score(const Problem& P, const Space& X, int n) {
  for (int q = 0; q < tiled(n); q += TILE) {
    vec dots[TILE];
    AFM_UNROLL
    for (int r = 0; r < TILE; r++) dots[r] = vec{};
    for (int64_t y = 0; y < X.tw; y++) {
      const vec b = load(X.b + y * L), h = load(X.h + y * L);
      vec c[TILE];
      AFM_UNROLL
      for (int r = 0; r < TILE; r++) c[r] = b;
      product(X.E + q * L, X.W + y * P.k * L, P.k, c);
      AFM_UNROLL
      for (int r = 0; r < TILE; r++) {
        X.above[y * PAIRS + q + r] = above_zero(c[r]);
        dots[r] += relu(c[r]) * h;
      }
    }
    sums_of_tile(dots, X.s + q);
  }
  for (int q = n; q < filled(n); q++) X.s[q] = -INFINITY;
}

// ge = g . e
template <bool BY_SLOT>
AFM_INLINE void against_upstream(const Space& X, int n) {
  for (int q = 0; q < tiled(n); q += TILE) {
    vec dots[TILE];
    AFM_UNROLL
    for (int r = 0; r < TILE; r++) dots[r] = vec{};
    for (int64_t x = 0; x < X.kw; x++) {
      AFM_UNROLL
      for (int r = 0; r < TILE; r++)
        dots[r] += load(X.E + (x * PAIRS + q + r) * L) * upstream_of<BY_SLOT>(X, q + r, x);
    }
    sums_of_tile(dots, X.ge + q);
  }
}

AFM_INLINE void drop(const Problem& P, const Space& X, const Row& row, int n) {
  for (int q = 0; q < n; q++) {
    const uint64_t bits = mix(row.key + (static_cast<uint64_t>(X.number[q]) + 1) * GOLDEN);
    X.w[q] = static_cast<int32_t>(bits >> 40) < P.threshold ? 0.0f : X.w[q] * P.keep_scale;
  }
}

}  // namespace
}  // namespace afm_ctr

#endif  // AFM_CTR_NATIVE_BLOCK_H_
