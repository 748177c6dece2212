// Attentional pooling forward and backward, a row at a time and a block of its pairs at a time.
//
//   e_q = u_i * u_j,  s_q = h . relu(W^T e_q + b),  a = softmax of s over the row's pairs,  pooled = c sum a_q m_q e_q
//
// (m: dropout factors, c: the number of pairs or 1); by slot each slot has a sum of its own, over the pairs that it is
// in. The softmax runs online (running maximum and sum: Milakov and Gimelshein, 2018). Of a pair its score and a bit
// for each unit of its hidden layer outlive their block of PAIRS pairs, or nothing, and then the backward pass computes
// them again; it normalises the scores by the saved logarithm of the softmax's denominator.
//
// The relu passes units on or does not, so that with G = sum over q of e_q (ds_q above_q) and g = sum of ds_q above_q
// dW = G diag(h), db = g h, dh = W . G + b g: the hidden layer itself is not needed again.
//
// This file is compiled once an instruction set, everything in a namespace without a name, and uses no template of
// the standard library: see problem.h. A NaN in an input comes out as NaN, as it does from TensorFlow's ops.
#include "block.h"

namespace afm_ctr {
namespace {

// to_i += w e and to_j += w e for every pair: what it adds to the sums of its two slots.
AFM_INLINE void spread(const Space& X, int n, float* sums) {
  const int64_t stride = X.kw * L;
  for (int64_t x = 0; x < X.kw; x++) {
    const float* const E = X.E + x * PAIRS * L;
    float* const to = sums + x * L;
    for (int q = 0; q < n;) {  // pairs of the same i stand side by side
      const int32_t i = X.i[q];
      vec own = vec{};
      for (; q < n && X.i[q] == i; q++) {
        const int64_t j = X.j[q] * stride;
        const vec e = X.w[q] * load(E + q * L);
        own += e;
        store(to + j, load(to + j) + e);
      }
      store(to + i * stride, load(to + i * stride) + own);
    }
  }
}

template <bool BY_SLOT>
void forward_as(const Problem& P, float* memory, int64_t begin, int64_t end, float* pooled, float* lse,
                float* scores) {
  Space X = prepare(P, memory);
  const int64_t of_row = kept(P), of_block = scored(X.tw);
  const int64_t sums = BY_SLOT ? P.slots : 1;
  for (int64_t row_number = begin; row_number < end; row_number++) {
    const Row row = open_row(P, X, row_number);
    memset(X.pooled, 0, sums * X.kw * sizeof(vec));
    float highest = -INFINITY, total = 0;
    int64_t next = 0, count = 0;
    while (next < P.pairs) {
      const int n = next_pairs(P, X, row, &next);
      if (n == 0) break;
      if (scores) keep_scores(&X, scores + row_number * of_row + count / PAIRS * of_block);
      count += n;
      multiply(X, row, n);
      score(P, X, n);
      vec tops = load(X.s);
      for (int q = L; q < n; q += L) {
        const vec s = load(X.s + q);
        tops = tops < s ? s : tops;
      }
      float top = highest;
      for (int lane = 0; lane < L; lane++) top = top < tops[lane] ? tops[lane] : top;
      const float shrink = highest < top ? expf(highest - top) : 1.0f;
      highest = top;
      vec part = vec{};
      for (int q = 0; q < n; q += L) {
        const vec e = exponential(load(X.s + q) - highest);
        part += e;
        store(X.w + q, e);
      }
      total = total * shrink + sum(part);
      if (P.threshold) drop(P, X, row, n);
      if (BY_SLOT) {
        if (shrink != 1.0f)
          for (int64_t x = 0; x < P.slots * X.kw; x++) store(X.pooled + x * L, load(X.pooled + x * L) * shrink);
        spread(X, n, X.pooled);
        continue;
      }
      for (int64_t x = 0; x < X.kw; x++) {
        const float* E = X.E + x * PAIRS * L;
        vec a = load(X.pooled + x * L) * shrink, b = vec{}, c = vec{}, d = vec{};
        int q = 0;
        for (; q + 3 < n; q += 4) {
          a += X.w[q] * load(E + q * L);
          b += X.w[q + 1] * load(E + (q + 1) * L);
          c += X.w[q + 2] * load(E + (q + 2) * L);
          d += X.w[q + 3] * load(E + (q + 3) * L);
        }
        for (; q < n; q++) a += X.w[q] * load(E + q * L);
        store(X.pooled + x * L, (a + b) + (c + d));
      }
    }
    const float scale = P.scale_by_pairs ? static_cast<float>(count) : 1.0f;
    const float factor = count ? scale / total : 0.0f;
    for (int64_t f = 0; f < sums; f++)
      for (int64_t x = 0; x < P.k; x++)
        pooled[(row_number * sums + f) * P.k + x] = X.pooled[f * X.kw * L + x] * factor;
    lse[row_number] = count ? highest + logf(total) : 0.0f;
  }
}

// R becomes the gradient by the hidden layer before the relu but for the factor h, as do db and dW, which are added
// up. DEPTH rows of dW from row x0 on, panel y.
template <int DEPTH, bool FIRST>
AFM_INLINE void weights(const Space& X, int n, int64_t y, int64_t x0) {
  const float* E = X.E + x0 / L * PAIRS * L + x0 % L;
  float* R = X.R + y * PAIRS * L;
  float* dW = X.dW + (y * X.kw * L + x0) * L;
  const lanes* above = X.above + y * PAIRS;
  vec by_b = vec{}, acc[DEPTH];
  AFM_UNROLL
  for (int x = 0; x < DEPTH; x++) acc[x] = load(dW + x * L);
  for (int q = 0; q < n; q++) {
    const vec by_hidden = FIRST ? only(above[q], all(X.ds[q])) : load(R + q * L);
    if (FIRST) {
      by_b += by_hidden;
      store(R + q * L, by_hidden);
    }
    AFM_UNROLL
    for (int x = 0; x < DEPTH; x++) acc[x] += E[q * L + x] * by_hidden;
  }
  AFM_UNROLL
  for (int x = 0; x < DEPTH; x++) store(dW + x * L, acc[x]);
  if (FIRST) store(X.db + y * L, load(X.db + y * L) + by_b);
}

// E becomes the gradient by the products.
template <bool BY_SLOT>
AFM_INLINE void products(const Problem& P, const Space& X, int n) {
  for (int64_t x = 0; x < X.kw; x++) {
    for (int q = 0; q < n; q += TILE) {
      vec c[TILE];
      AFM_UNROLL
      for (int r = 0; r < TILE; r++) c[r] = X.w[q + r] * upstream_of<BY_SLOT>(X, q + r, x);
      product(X.R + q * L, X.hW + x * P.t * L, P.t, c);
      AFM_UNROLL
      for (int r = 0; r < TILE; r++) store(X.E + (x * PAIRS + q + r) * L, c[r]);
    }
  }
}

// du_i += u_j * de and du_j += u_i * de for every pair.
AFM_INLINE void vectors(const Space& X, const Row& row, int n, float* du) {
  const int64_t stride = X.kw * L;
  for (int64_t x = 0; x < X.kw; x++) {
    const float *E = X.E + x * PAIRS * L, *u = row.u + x * L;
    float* const to = du + x * L;
    for (int q = 0; q < n;) {  // pairs of the same i stand side by side
      const int32_t i = X.i[q];
      const vec ui = load(u + i * stride);
      vec own = vec{};
      for (; q < n && X.i[q] == i; q++) {
        const int64_t j = X.j[q] * stride;
        const vec de = load(E + q * L);
        own += load(u + j) * de;
        store(to + j, load(to + j) + ui * de);
      }
      store(to + i * stride, load(to + i * stride) + own);
    }
  }
}

template <bool BY_SLOT>
void backward_as(const Problem& P, float* memory, int64_t begin, int64_t end, const float* pooled, const float* lse,
                 const float* scores, const float* dpooled, float* du, float* sums) {
  Space X = prepare(P, memory);
  const int64_t of_row = kept(P), of_block = scored(X.tw);
  const int64_t pools = BY_SLOT ? P.slots : 1;
  for (int64_t row_number = begin; row_number < end; row_number++) {
    const Row row = open_row(P, X, row_number);
    const float *upstream = dpooled + row_number * pools * P.k, *sum = pooled + row_number * pools * P.k;
    float* const to = du + row_number * P.slots * P.k;
    const bool direct = P.k % L == 0 && reinterpret_cast<uintptr_t>(to) % sizeof(vec) == 0;
    float* const by_u = direct ? to : X.du;
    memset(by_u, 0, P.slots * X.kw * sizeof(vec));
    const float scale = P.scale_by_pairs ? static_cast<float>(count_pairs(P, row)) : 1.0f;
    float along = 0;
    for (int64_t f = 0; f < pools; f++)
      for (int64_t x = 0; x < P.k; x++) {
        X.g[f * X.kw * L + x] = upstream[f * P.k + x] * scale;
        along += upstream[f * P.k + x] * sum[f * P.k + x];
      }
    int64_t next = 0;
    for (int64_t block = 0; next < P.pairs; block++) {
      const int n = next_pairs(P, X, row, &next);
      if (n == 0) break;
      multiply(X, row, n);
      if (scores)
        keep_scores(&X, const_cast<float*>(scores) + row_number * of_row + block * of_block);  // only read
      else
        score(P, X, n);
      against_upstream<BY_SLOT>(X, n);
      const int end_of_pairs = filled(n);  // beyond the n pairs the scores are -inf, and all that follows 0
      for (int q = 0; q < end_of_pairs; q += L) {
        const vec a = exponential(load(X.s + q) - lse[row_number]);
        store(X.ds + q, a);
        store(X.w + q, a);
      }
      if (P.threshold) drop(P, X, row, n);
      for (int q = 0; q < end_of_pairs; q += L)
        store(X.ds + q, load(X.w + q) * load(X.ge + q) - load(X.ds + q) * along);
      const int tiles = tiled(n);
      for (int64_t y = 0; y < X.tw; y++) {
        weights<L, true>(X, tiles, y, 0);
        int64_t x = L;
        for (; x + L / 2 < P.k; x += L) weights<L, false>(X, tiles, y, x);
        for (; x < P.k; x += L / 2) weights<L / 2, false>(X, tiles, y, x);
      }
      products<BY_SLOT>(P, X, tiles);
      vectors(X, row, n, by_u);
    }
    if (!direct)
      for (int64_t f = 0; f < P.slots; f++) memcpy(to + f * P.k, by_u + f * X.kw * L, P.k * sizeof(float));
  }
  float *const db = sums + P.k * P.t, *const dh = db + P.t;
  for (int64_t y = 0; y < P.t; y++) {
    db[y] = P.h[y] * X.db[y];
    dh[y] = P.b[y] * X.db[y];
  }
  for (int64_t x = 0; x < P.k; x++)
    for (int64_t y = 0; y < P.t; y++) {
      const float by_unit = X.dW[(y / L * X.kw * L + x) * L + y % L];
      sums[x * P.t + y] = P.h[y] * by_unit;
      dh[y] += P.W[x * P.t + y] * by_unit;
    }
}

void forward(const Problem& P, float* memory, int64_t begin, int64_t end, float* pooled, float* lse, float* scores) {
  (P.by_slot ? forward_as<true> : forward_as<false>)(P, memory, begin, end, pooled, lse, scores);
}

void backward(const Problem& P, float* memory, int64_t begin, int64_t end, const float* pooled, const float* lse,
              const float* scores, const float* dpooled, float* du, float* sums) {
  (P.by_slot ? backward_as<true> : backward_as<false>)(P, memory, begin, end, pooled, lse, scores, dpooled, du, sums);
}

bool supported() { return AFM_SUPPORTED; }

}  // namespace

const Kernel AFM_KERNEL = {AFM_NAME, supported, workspace, kept, forward, backward};

}  // namespace afm_ctr
