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
// dW = G diag(h), db = g h, dh = W . G + b g: the hidden layer itself is not needed again. And both products with
// above_q are sums of subsets: of e_q ds_q over the pairs with a unit above 0, and of the rows of diag(h) W^T over a
// pair's units above 0. Of every GROUP units all subsets have a sum, so a pair adds or reads one vector for GROUP
// multiply-adds (Arlazarov, Dinic, Kronrod and Faradzev, 1970, the "four Russians").
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
  const int64_t of_row = kept(P), of_block = scored(X.words);
  const int64_t sums = BY_SLOT ? P.slots : 1;
  for (int64_t row_number = begin; row_number < end; row_number++) {
    const Row row = open_row(P, X, row_number);
    memset(X.pooled, 0, sums * X.kw * sizeof(vec));
    float highest = -INFINITY, total = 0;
    int64_t next = 0, count = 0;
    while (next < P.pairs) {
      const int n = next_pairs(P, &X, row, &next);
      if (n == 0) break;
      if (scores) keep_scores(&X, scores + row_number * of_row + count / PAIRS * of_block);
      count += n;
      score(P, X, row, n);
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

// The sums of every subset of a group of rows of diag(h) W^T.
void add_up_subsets(const Problem& P, const Space& X) {
  for (int64_t x = 0; x < X.kw; x++)
    for (int64_t group = 0; group < X.groups; group++) {
      float* const sums = X.subsets + (x * X.groups + group) * 2 * SUBSETS * L;
      for (int64_t y = group * GROUP; y < smaller(P.t, (group + 1) * GROUP); y++)
        for (int lane = 0; lane < smaller(L, P.k - x * L); lane++)
          sums[(2 << y % GROUP) * L + lane] = P.h[y] * P.W[(x * L + lane) * P.t + y];
      for (int subset = 1; subset < SUBSETS; subset++) {
        const int one = subset & -subset;  // the first of its units
        if (subset != one)
          store(sums + 2 * subset * L, load(sums + 2 * one * L) + load(sums + 2 * (subset - one) * L));
      }
    }
}

// What a block adds to db but for the factor h.
AFM_INLINE void offsets(const Space& X, int n) {
  for (int64_t y = 0; y < X.tw; y++) {
    const units* const above = X.above + y / SPAN * PAIRS;
    const auto part = [&](int q) __attribute__((always_inline)) {
      return only(static_cast<lanes>(above[q] >> y % SPAN * L), all(X.ds[q]));
    };
    vec sums[4] = {load(X.db + y * L)};
    int q = 0;
    for (; q + 3 < n; q += 4) {
      AFM_UNROLL
      for (int r = 0; r < 4; r++) sums[r] += part(q + r);
    }
    for (; q < n; q++) sums[0] += part(q);
    store(X.db + y * L, (sums[0] + sums[1]) + (sums[2] + sums[3]));
  }
}

// With r = h above ds of a pair, what a word of its units adds to dW, e r^T, and to the gradient by the pair's product,
// W r, which the last word completes and hands to the vectors: du_i += u_j * de and du_j += u_i * de. The units of a
// group that are above 0 name a subset: the pair adds ds e to the sums of all pairs of this subset, and reads W r.
// WIDE panels of the vectors from x on.
template <bool BY_SLOT, int WIDE, bool ALONE, bool WHOLE>
__attribute__((noinline)) void gradients(const Space& X, const float* u, int n, int64_t x, int64_t word, float* du) {
  const int64_t stride = X.kw * L, panel = X.groups * 2 * SUBSETS * L, first = word * (WORD / GROUP);
  const int64_t groups = WHOLE ? WORD / GROUP : smaller(X.groups - first, WORD / GROUP);
  const bool begin = ALONE || word == 0, end = ALONE || word == X.words - 1;
  const float *const g = X.g + x * L, *const ds = X.ds, *const w = X.w;
  const int32_t *const is = X.i, *const js = X.j;
  const units* const above = X.above + word * PAIRS;
  float *const subsets = X.subsets + x * panel + first * 2 * SUBSETS * L, *const R = X.R;
  u += x * L;
  du += x * L;
  for (int64_t q = 0; q < n;) {  // pairs of the same i stand side by side
    const int32_t i = is[q];
    vec ui[WIDE], gi[WIDE], own[WIDE];
    AFM_UNROLL
    for (int p = 0; p < WIDE; p++) {
      ui[p] = load(u + i * stride + p * L);
      gi[p] = load((BY_SLOT ? g + i * stride : g) + p * L);
      own[p] = vec{};
    }
    for (; q < n && is[q] == i; q++) {
      const int64_t j = js[q] * stride;
      const vec by_score = all(ds[q]);
      const uint64_t bits = above[q];
      vec uj[WIDE], e[WIDE], sum[WIDE];
      AFM_UNROLL
      for (int p = 0; p < WIDE; p++) {
        uj[p] = load(u + j + p * L);
        e[p] = ui[p] * uj[p] * by_score;
        sum[p] = begin ? vec{} : load(R + (p * PAIRS + q) * L);
      }
      AFM_UNROLL
      for (int64_t group = 0; group < groups; group++) {
        float* const at = subsets + (group * SUBSETS + (bits >> group * GROUP) % SUBSETS) * 2 * L;
        AFM_UNROLL
        for (int p = 0; p < WIDE; p++) {
          sum[p] += load(at + p * panel);
          store(at + p * panel + L, load(at + p * panel + L) + e[p]);
        }
      }
      AFM_UNROLL
      for (int p = 0; p < WIDE; p++) {
        if (end) {
          const vec de = sum[p] * by_score + w[q] * (BY_SLOT ? gi[p] + load(g + j + p * L) : gi[p]);
          own[p] += uj[p] * de;
          store(du + j + p * L, load(du + j + p * L) + ui[p] * de);
        } else {
          store(R + (p * PAIRS + q) * L, sum[p]);
        }
      }
    }
    if (end) {
      AFM_UNROLL
      for (int p = 0; p < WIDE; p++) store(du + i * stride + p * L, load(du + i * stride + p * L) + own[p]);
    }
  }
}

template <bool BY_SLOT, int WIDE>
AFM_INLINE void all_gradients(const Space& X, const float* u, int n, int64_t x, float* du) {
  if (X.words == 1)
    return (X.groups == WORD / GROUP ? gradients<BY_SLOT, WIDE, true, true> : gradients<BY_SLOT, WIDE, true, false>)(
        X, u, n, x, 0, du);
  for (int64_t word = 0; word < X.words; word++) gradients<BY_SLOT, WIDE, false, false>(X, u, n, x, word, du);
}

template <bool BY_SLOT>
void backward_as(const Problem& P, float* memory, int64_t begin, int64_t end, const float* pooled, const float* lse,
                 const float* scores, const float* dpooled, float* du, float* sums) {
  Space X = prepare(P, memory);
  add_up_subsets(P, X);
  const int64_t of_row = kept(P), of_block = scored(X.words);
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
      const int n = next_pairs(P, &X, row, &next);
      if (n == 0) break;
      if (scores) {
        keep_scores(&X, const_cast<float*>(scores) + row_number * of_row + block * of_block);  // only read
      } else {
        score(P, X, row, n);
      }
      against_upstream<BY_SLOT>(X, row, n);
      const int end_of_pairs = filled(n);  // beyond the n pairs the scores are -inf, and all that follows 0
      for (int q = 0; q < end_of_pairs; q += L) {
        const vec a = exponential(load(X.s + q) - lse[row_number]);
        store(X.ds + q, a);
        store(X.w + q, a);
      }
      if (P.threshold) drop(P, X, row, n);
      for (int q = 0; q < end_of_pairs; q += L)
        store(X.ds + q, load(X.w + q) * load(X.ge + q) - load(X.ds + q) * along);
      offsets(X, n);
      int64_t x = 0;
      for (; x + WIDE <= X.kw; x += WIDE) all_gradients<BY_SLOT, WIDE>(X, row.u, n, x, by_u);
      for (; x < X.kw; x++) all_gradients<BY_SLOT, 1>(X, row.u, n, x, by_u);
    }
    if (!direct)
      for (int64_t f = 0; f < P.slots; f++) memcpy(to + f * P.k, by_u + f * X.kw * L, P.k * sizeof(float));
  }
  float *const db = sums + P.k * P.t, *const dh = db + P.t;
  for (int64_t y = 0; y < P.t; y++) {
    db[y] = P.h[y] * X.db[y];
    dh[y] = P.b[y] * X.db[y];
  }
  for (int64_t x = 0; x < P.k; x += L)
    for (int64_t y = 0; y < P.t; y++) {
      const float* const subsets = X.subsets + ((x / L * X.groups + y / GROUP) * 2 * SUBSETS + 1) * L;
      vec by_unit = vec{};
      for (int subset = 0; subset < SUBSETS; subset++)  // times 0 too, of which NaN comes out
        by_unit += static_cast<float>(subset >> y % GROUP & 1) * load(subsets + 2 * subset * L);
      for (int lane = 0; lane < smaller(L, P.k - x); lane++) {
        sums[(x + lane) * P.t + y] = P.h[y] * by_unit[lane];
        dh[y] += P.W[(x + lane) * P.t + y] * by_unit[lane];
      }
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
