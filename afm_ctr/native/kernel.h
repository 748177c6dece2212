// Attentional pooling forward and backward, a group of rows at a time.
//
//   e_q = u_i * u_j,  s_q = h . relu(W^T e_q + b),  a = softmax of s over the row's pairs,  pooled = c sum a_q m_q e_q
//
// (m: dropout factors, c: the number of pairs or 1); by slot each slot has a sum of its own, over the pairs that it is
// in. Forward, and backward up to the gradient by the scores, each lane of a vector is a row (group.h); the rest of the
// backward pass takes row by row, with a lane for each number of a vector. Of a pair its score and a bit for each unit
// of its hidden layer outlive their group, or nothing, and then the backward pass computes them again; it normalises
// the scores by the saved logarithm of the softmax's denominator.
//
// The relu passes units on or does not, so that with G = sum over q of e_q (ds_q above_q) and g = sum of ds_q above_q
// dW = G diag(h), db = g h, dh = W . G + b g: the hidden layer itself is not needed again. And both products with
// above_q are sums of subsets: of e_q ds_q over the pairs with a unit above 0, and of the rows of diag(h) W^T over a
// pair's units above 0. Of every 8 units all subsets have a sum, so a pair adds or reads one vector for 8 multiply-adds
// (Arlazarov, Dinic, Kronrod and Faradzev, 1970, the "four Russians").
//
// This file is compiled once an instruction set, everything in a namespace without a name, and uses no template of
// the standard library: see problem.h. A NaN in an input comes out as NaN, as it does from TensorFlow's ops.
#include "group.h"

namespace afm_ctr {
namespace {

// The end of the pairs from q on that have the same first place.
AFM_INLINE int64_t end_of_run(const Space& X, int64_t q, int64_t end) {
  const int32_t i = X.i[q];
  for (q++; q < end && X.i[q] == i; q++) continue;
  return q;
}

// What the pairs add to pooled: of the whole u_i * sum w u_j, by slot sum w u_j to i and w u_i to j, which u is
// multiplied by in the end. SOME numbers of the vectors from x on.
template <bool BY_SLOT, int SOME>
AFM_APART void pool(const Problem& P, const Space& X, const Group& group, int64_t x) {
  const int64_t stride = P.k * L;
  const float* const U = X.U + x * L;
  float* const G = X.G + x * L;
  for (int64_t q = 0; q < group.pairs;) {
    const int64_t end = end_of_run(X, q, group.pairs), i = X.i[q] * stride;
    vec own[SOME], ui[SOME];
    AFM_UNROLL
    for (int r = 0; r < SOME; r++) {
      own[r] = vec{};
      if (BY_SLOT) ui[r] = load(U + i + r * L);
    }
    for (; q < end; q++) {
      const int64_t j = X.j[q] * stride;
      const vec w = load(X.w + q * L);
      AFM_UNROLL
      for (int r = 0; r < SOME; r++) {
        own[r] += w * load(U + j + r * L);
        if (BY_SLOT) store(G + j + r * L, load(G + j + r * L) + w * ui[r]);
      }
    }
    float* const to = BY_SLOT ? G + i : G;
    AFM_UNROLL
    for (int r = 0; r < SOME; r++)
      store(to + r * L, load(to + r * L) + (BY_SLOT ? own[r] : own[r] * load(U + i + r * L)));
  }
}

// The same by slot where the pairs are all of the group's places: N places at a time, with their sums in registers.
template <int SOME, int N>
AFM_APART void pool_places(const Problem& P, const Space& X, int64_t last, int64_t place, int64_t x) {
  const int64_t stride = P.k * L;
  const float *const U = X.U + x * L, *w = X.w + (place - 1) * L;
  float* const to = X.G + place * stride + x * L;
  vec sums[N][SOME] = {};
  const auto add = [&](int n, const float* weight, int64_t other) __attribute__((always_inline)) {
    AFM_UNROLL
    for (int r = 0; r < SOME; r++) sums[n][r] += load(weight) * load(U + other * stride + r * L);
  };
  for (int64_t i = 0; i < place; i++, w += (last - i) * L) {
    AFM_UNROLL
    for (int n = 0; n < N; n++) add(n, w + n * L, i);
  }
  const float* const between = w + L;  // of the first two of these places
  if constexpr (N == 2) add(1, between, place);
  AFM_UNROLL
  for (int n = 0; n < N; n++) {
    AFM_UNROLL
    for (int r = 0; r < SOME; r++) store(to + n * stride + r * L, sums[n][r]), sums[n][r] = vec{};
  }
  if constexpr (N == 2) add(0, between, place + 1);
  w += N * L;
  for (int64_t j = place + N; j <= last; j++, w += L) {
    AFM_UNROLL
    for (int n = 0; n < N; n++) add(n, w + n * (last - place - 1) * L, j);
  }
  AFM_UNROLL
  for (int n = 0; n < N; n++) {
    AFM_UNROLL
    for (int r = 0; r < SOME; r++) store(to + n * stride + r * L, load(to + n * stride + r * L) + sums[n][r]);
  }
}

template <int SOME>
AFM_INLINE void pool_all_places(const Problem& P, const Space& X, int64_t places, int64_t x) {
  constexpr int N = L == 16 ? 2 : 1;  // as many as there are registers for
  int64_t place = 0;
  for (; place + N <= places; place += N) pool_places<SOME, N>(P, X, places - 1, place, x);
  for (; place < places; place++) pool_places<SOME, 1>(P, X, places - 1, place, x);
}

template <bool BY_SLOT>
void forward_as(const Problem& P, float* memory, int64_t begin, int64_t end, float* pooled, float* lse,
                float* scores) {
  Space X = prepare(P, memory);
  constexpr int SOME = L == 16 ? 16 : 8, FEW = BY_SLOT ? SOME / 2 : SOME;
  for (int64_t first = begin; first < end; first += L) {
    const Group group = open_group(P, &X, first, end);
    if (scores) keep_scores(&X, scores + first / L * kept(P));
    Ahead ahead[2] = {next_of(group, end, P.u, P.slots * P.k),
                      next_of(group, end, pooled, (BY_SLOT ? P.slots : 1) * P.k)};
    score(P, X, group, ahead);
    vec top = all(-INFINITY), total = vec{};
    for (int64_t q = 0; q < group.pairs; q++) {
      const vec s = load(X.s + q * L);
      top = top < s ? s : top;
    }
    top = group.count != 0 ? top : vec{};
    for (int64_t q = 0; q < group.pairs;) {  // sums of sums, in which less is rounded off
      vec part = vec{};
      for (const int64_t end_of_i = end_of_run(X, q, group.pairs); q < end_of_i; q++) {
        const vec e = exponential(load(X.s + q * L) - top);
        part += e;
        store(X.w + q * L, e);
      }
      total += part;
    }
    if (P.threshold) {
      draw(P, X, group);
      for (int64_t q = 0; q < group.pairs; q++) store(X.w + q * L, dropped(P, X, q, load(X.w + q * L)));
    }
    const int64_t sums = BY_SLOT ? group.places : 1;
    int64_t x = 0;
    if (BY_SLOT && P.all_pairs) {
      for (; x + 8 <= P.k; x += 8) pool_all_places<8>(P, X, group.places, x);
      for (; x < P.k; x++) pool_all_places<1>(P, X, group.places, x);
    } else {
      memset(X.G, 0, sums * P.k * sizeof(vec));
      for (; x + FEW <= P.k; x += FEW) pool<BY_SLOT, FEW>(P, X, group, x);
      for (; x < P.k; x++) pool<BY_SLOT, 1>(P, X, group, x);
    }
    const vec scale = P.scale_by_pairs ? __builtin_convertvector(group.count, vec) : all(1.0f);
    const vec factor = group.count != 0 ? scale / total : vec{};
    if (BY_SLOT && !group.full) memset(pooled + first * P.slots * P.k, 0, group.rows * P.slots * P.k * sizeof(float));
    for (int64_t place = 0; place < sums; place++) {
      float *const from = X.G + place * P.k * L, *to[L];
      for (x = 0; x < P.k; x++) {
        const vec sum = load(from + x * L) * factor;
        store(from + x * L, BY_SLOT ? sum * load(X.U + (place * P.k + x) * L) : sum);
      }
      find(P, X, group, place, BY_SLOT, pooled, X.E, to);
      from_lanes(from, P.k, to);
    }
    for (int64_t lane = 0; lane < group.rows; lane++)
      lse[first + lane] = group.count[lane] ? top[lane] + logf(total[lane]) : 0.0f;
  }
}

// Of a group of units each subset has two sums: of the units' rows of diag(h) W^T, and of ds e over the pairs in which
// these alone of the group are above 0. Those of WIDE panels stand side by side.
struct Subsets {
  float *rows, *pairs;
  int64_t step;  // to those of the next subset
  int64_t used;  // subsets of units that there are
};

AFM_INLINE Subsets subsets_of(const Problem& P, const Space& X, int64_t x, int64_t group) {
  const int64_t first = x / WIDE * WIDE, wide = smaller(WIDE, X.kw - first);
  float* const at = X.subsets + ((first * X.groups + group * wide) * 2 * SUBSETS + x - first) * L;
  const int64_t units = P.t - group * GROUPED;
  return {at, at + wide * L, 2 * wide * L, units > 0 ? int64_t{1} << smaller(units, GROUPED) : 0};
}

void open_subsets(const Problem& P, const Space& X) {
  memset(X.db, 0, X.tw * sizeof(vec));
  memset(X.subsets, 0, X.kw * X.groups * SUBSETS * 2 * sizeof(vec));
  for (int64_t x = 0; x < X.kw; x++)
    for (int64_t group = 0; group < X.groups; group++) {
      const Subsets S = subsets_of(P, X, x, group);
      for (int64_t subset = 1; subset < S.used; subset++) {
        const int64_t one = subset & -subset;  // the first of its units
        if (subset == one)
          for (int64_t lane = 0, y = group * GROUPED + __builtin_ctz(one); lane < smaller(L, P.k - x * L); lane++)
            S.rows[subset * S.step + lane] = P.h[y] * P.W[(x * L + lane) * P.t + y];
        else
          store(S.rows + subset * S.step, load(S.rows + one * S.step) + load(S.rows + (subset - one) * S.step));
      }
    }
}

// Of each unit the sum over the subsets that it is in; handed to `take` with a lane for each number of panel x.
template <typename Take>
AFM_INLINE void close_subsets(const Problem& P, const Space& X, int64_t x, int64_t group, Take take) {
  const Subsets S = subsets_of(P, X, x, group);
  vec none = {};
  for (int64_t subset = 0; subset < S.used; subset++) none += load(S.pairs + subset * S.step) * 0.0f;  // 0, or NaN
  for (int64_t half = S.used / 2; half > 0; half /= 2) {  // those with the last unit, which are then added to those without
    vec sums[4] = {none};
    for (int64_t subset = 0; subset < half; subset += 4) {
      AFM_UNROLL
      for (int64_t r = 0; r < 4; r++) {
        if (subset + r >= half) break;
        float* const without = S.pairs + (subset + r) * S.step;
        const vec with = load(without + half * S.step);
        sums[r] += with;
        store(without, load(without) + with);
      }
    }
    take(group * GROUPED + __builtin_ctz(half), (sums[0] + sums[1]) + (sums[2] + sums[3]));
  }
}

// What a block adds to db but for the factor h.
AFM_INLINE void offsets(const Space& X, int n) {
  for (int64_t y = 0; y < X.tw; y++) {
    const units* const above = X.above + y / SPAN * L * X.room;
    const auto part = [&](int q) __attribute__((always_inline)) {
      return only(above[q], y % SPAN * L, all(X.ds[q]));
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
template <bool BY_SLOT, int WIDE, bool ALONE>
__attribute__((noinline)) void gradients(const Space& X, const float* u, int n, int64_t x, int64_t word, float* du) {
  const int64_t stride = X.kw * L, step = 2 * WIDE * L;
  const bool begin = ALONE || word == 0, end = ALONE || word == X.words - 1;
  const float *const g = X.g + x * L, *const ds = X.ds, *const w = X.w;
  const int32_t *const is = X.i, *const js = X.j;
  const units* const above = X.above + word * L * X.room;
  float *const subsets = X.subsets + (x * X.groups + word * GROUPS * WIDE) * 2 * SUBSETS * L, *const R = X.R;
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
      for (int group = 0; group < GROUPS; group++) {
        float* const at = subsets + (group * SUBSETS + (bits >> group * GROUPED) % SUBSETS) * step;
        AFM_UNROLL
        for (int p = 0; p < WIDE; p++) {
          sum[p] += load(at + p * L);
          store(at + (WIDE + p) * L, load(at + (WIDE + p) * L) + e[p]);
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
  if (X.words == 1) return gradients<BY_SLOT, WIDE, true>(X, u, n, x, 0, du);
  for (int64_t word = 0; word < X.words; word++) gradients<BY_SLOT, WIDE, false>(X, u, n, x, word, du);
}

// g . e of N pairs with the same i, by slot (g_i + g_j) . e; gi is g_i * u_i, or by slot g_i of X.G, which holds g * u.
template <bool BY_SLOT, int N>
AFM_INLINE void along_pairs(const Problem& P, const Space& X, const float* gi, int64_t i, int64_t q) {
  const float *uj[N], *gj[N], *const ui = X.U + i;
  vec dots[N][2] = {};
  AFM_UNROLL
  for (int r = 0; r < N; r++) uj[r] = X.U + X.j[q + r] * P.k * L, gj[r] = X.G + X.j[q + r] * P.k * L;
  const auto add = [&](int64_t x, int half) __attribute__((always_inline)) {
    const vec g = load(gi + x * L), u = load(ui + x * L);
    AFM_UNROLL
    for (int r = 0; r < N; r++) {
      dots[r][half] += g * load(uj[r] + x * L);
      if (BY_SLOT) dots[r][half] += load(gj[r] + x * L) * u;
    }
  };
  int64_t x = 0;
  for (; x + 2 <= P.k; x += 2) add(x, 0), add(x + 1, 1);
  if (x < P.k) add(x, 0);
  AFM_UNROLL
  for (int r = 0; r < N; r++) store(X.ds + (q + r) * L, dots[r][0] + dots[r][1]);
}

// Gradients by the scores of the pairs, and their weights: with a lane for each row, and then row by row.
template <bool BY_SLOT>
AFM_APART void by_scores(const Problem& P, const Space& X, const Group& group, vec lse, vec scale) {
  const auto dropped_out = [&](int64_t q, vec a) __attribute__((always_inline)) {
    return P.threshold ? dropped(P, X, q, a) : a;
  };
  vec along = {};  // g . pooled
  for (int64_t q = 0; q < group.pairs;) {
    const int64_t end = end_of_run(X, q, group.pairs), i = X.i[q] * P.k * L;
    float* const gi = BY_SLOT ? X.G + i : X.E;
    if (!BY_SLOT)
      for (int64_t x = 0; x < P.k; x++) store(gi + x * L, load(X.G + x * L) * load(X.U + i + x * L));
    int64_t at = q;
    for (; at + 4 <= end; at += 4) along_pairs<BY_SLOT, 4>(P, X, gi, i, at);
    for (; at < end; at++) along_pairs<BY_SLOT, 1>(P, X, gi, i, at);
    vec part = {};
    for (; q < end; q++) {
      const vec a = exponential(load(X.s + q * L) - lse);
      store(X.w + q * L, a);
      part += dropped_out(q, a) * load(X.ds + q * L);
    }
    along += part;
  }
  for (int64_t q = 0; q < group.pairs; q += L) {
    vec of_row[L];
    AFM_UNROLL
    for (int r = 0; r < L; r++) {
      const vec a = load(X.w + (q + r) * L);
      of_row[r] = dropped_out(q + r, a) * load(X.ds + (q + r) * L) - a * along;
    }
    transpose(of_row);
    AFM_UNROLL
    for (int r = 0; r < L; r++) store(X.ds_of + r * X.room + q, of_row[r]);
    AFM_UNROLL
    for (int r = 0; r < L; r++) of_row[r] = dropped_out(q + r, load(X.w + (q + r) * L)) * scale;
    transpose(of_row);
    AFM_UNROLL
    for (int r = 0; r < L; r++) store(X.w_of + r * X.room + q, of_row[r]);
    for (int64_t word = 0; word < X.words; word++) {
      vec bits[L];
      AFM_UNROLL
      for (int r = 0; r < L; r++) {
        const uvec of_pair = *reinterpret_cast<const uvec*>(X.above + (word * X.room + q + r) * L);
        bits[r] = reinterpret_cast<vec>(__builtin_convertvector(of_pair, ivec));
      }
      transpose(bits);
      AFM_UNROLL
      for (int r = 0; r < L; r++)
        *reinterpret_cast<uvec*>(X.above_of + (word * L + r) * X.room + q) =
            __builtin_convertvector(reinterpret_cast<ivec>(bits[r]), uvec);
    }
  }
}

// The pairs of one row of the group, with their slots, and how many they are; those that only others have are left out.
AFM_APART int64_t open_pairs(const Space& X, const Group& group, int64_t lane, Space* row) {
  row->i = X.i;
  row->j = X.j;
  row->w = row->w_of + lane * row->room;
  row->ds = row->ds_of + lane * row->room;
  row->above = row->above_of + lane * row->room;
  if (group.full) return group.pairs;
  int32_t *const i = row->some + 2 * row->room, *const j = i + row->room;
  int64_t n = 0;
  const auto take = [&](int64_t q, int64_t count) __attribute__((always_inline)) {
    memmove(row->w + n, row->w + q, count * sizeof(float));
    memmove(row->ds + n, row->ds + q, count * sizeof(float));
    for (int64_t word = 0; word < row->words; word++) {
      units* const above = row->above + word * L * row->room;
      memmove(above + n, above + q, count * sizeof(units));
    }
  };
  if (group.moved) {
    int64_t size = 0;
    for (int64_t place = 0; place < group.places; place++) size -= row->on[place * L + lane];
    for (int64_t one = 0, q = 0; one + 1 < size; q += group.places - ++one) {
      const int64_t count = size - one - 1;
      take(q, count);
      for (int64_t other = one + 1; other < size; other++, n++) {
        i[n] = row->slot[one * L + lane];
        j[n] = row->slot[other * L + lane];
      }
    }
  } else {
    for (int64_t q = 0; q < group.pairs; q++) {
      take(q, 1);
      i[n] = row->i[q];
      j[n] = row->j[q];
      n -= row->on[row->i[q] * L + lane] & row->on[row->j[q] * L + lane];
    }
  }
  row->i = i;
  row->j = j;
  return n;
}

template <bool BY_SLOT>
void backward_as(const Problem& P, float* memory, int64_t begin, int64_t end, const float* lse, const float* scores,
                 const float* dpooled, float* du, float* sums) {
  Space X = prepare(P, memory);
  open_subsets(P, X);
  const int64_t pools = BY_SLOT ? P.slots : 1;
  for (int64_t first = begin; first < end; first += L) {
    const Group group = open_group(P, &X, first, end);
    if (scores) {
      keep_scores(&X, const_cast<float*>(scores) + first / L * kept(P));  // only read
    } else {
      Ahead none[2] = {};
      score(P, X, group, none);
      if (P.threshold) draw(P, X, group);
    }
    const vec scale = P.scale_by_pairs ? __builtin_convertvector(group.count, vec) : all(1.0f);
    for (int64_t place = 0; place < (BY_SLOT ? group.places : 1); place++) {
      const float* from[L];
      float* const to = X.G + place * P.k * L;
      find<const float>(P, X, group, place, BY_SLOT, dpooled, X.zeros, from);
      to_lanes(from, P.k, to);
      for (int64_t x = 0; x < P.k; x++) {
        const vec g = load(to + x * L) * scale;
        store(to + x * L, BY_SLOT ? g * load(X.U + (place * P.k + x) * L) : g);
      }
    }
    vec denominator = {};
    for (int64_t lane = 0; lane < group.rows; lane++) denominator[lane] = lse[first + lane];
    by_scores<BY_SLOT>(P, X, group, denominator, scale);
    Ahead ahead[] = {next_of(group, end, P.u, P.slots * P.k), next_of(group, end, du, P.slots * P.k),
                     next_of(group, end, dpooled, pools * P.k)};
    Space row = X;
    for (int64_t lane = 0; lane < group.rows; lane++) {
      for (Ahead& each : ahead) each.ask(lane + 1, L);
      const int64_t row_number = first + lane, size = P.slots * P.k;
      const float *u = P.u + row_number * size, *g = dpooled + row_number * pools * P.k;
      float* const to = du + row_number * size;
      const auto aligned = [](const float* at) { return reinterpret_cast<uintptr_t>(at) % sizeof(vec) == 0; };
      const int64_t n = open_pairs(X, group, lane, &row);
      const auto panelled = [&](const float* from, int64_t count, float* room) {
        if (P.k % L == 0 && aligned(from)) return from;
        for (int64_t f = 0; f < count; f++) memcpy(room + f * X.kw * L, from + f * P.k, P.k * sizeof(float));
        return static_cast<const float*>(room);
      };
      u = panelled(u, P.slots, X.u);
      row.g = panelled(g, pools, X.g_padded);
      const bool direct = P.k % L == 0 && aligned(to);
      float* const by_u = direct ? to : X.du;
      memset(by_u, 0, P.slots * X.kw * sizeof(vec));
      for (int64_t q = 0; q < n; q += PAIRS) {
        const int some = static_cast<int>(smaller(n - q, PAIRS));
        offsets(row, some);
        int64_t x = 0;
        for (; x + WIDE <= X.kw; x += WIDE) all_gradients<BY_SLOT, WIDE>(row, u, some, x, by_u);
        for (; x < X.kw; x++) all_gradients<BY_SLOT, 1>(row, u, some, x, by_u);
        row.w += PAIRS, row.ds += PAIRS, row.above += PAIRS, row.i += PAIRS, row.j += PAIRS;
      }
      if (!direct)
        for (int64_t f = 0; f < P.slots; f++) memcpy(to + f * P.k, by_u + f * X.kw * L, P.k * sizeof(float));
    }
  }
  float *const db = sums + P.k * P.t, *const dh = db + P.t;
  for (int64_t y = 0; y < P.t; y++) {
    db[y] = P.h[y] * X.db[y];
    dh[y] = P.b[y] * X.db[y];
  }
  for (int64_t x = 0; x < X.kw; x++)
    for (int64_t group = 0; group < X.groups; group++)
      close_subsets(P, X, x, group, [&](int64_t y, vec by_unit) {
        for (int64_t lane = 0; lane < smaller(L, P.k - x * L); lane++) {
          sums[(x * L + lane) * P.t + y] = P.h[y] * by_unit[lane];
          dh[y] += P.W[(x * L + lane) * P.t + y] * by_unit[lane];
        }
      });
}

void forward(const Problem& P, float* memory, int64_t begin, int64_t end, float* pooled, float* lse, float* scores) {
  (P.by_slot ? forward_as<true> : forward_as<false>)(P, memory, begin, end, pooled, lse, scores);
}

void backward(const Problem& P, float* memory, int64_t begin, int64_t end, const float* lse, const float* scores,
              const float* dpooled, float* du, float* sums) {
  (P.by_slot ? backward_as<true> : backward_as<false>)(P, memory, begin, end, lse, scores, dpooled, du, sums);
}

bool supported() { return AFM_SUPPORTED; }

}  // namespace

const Kernel AFM_KERNEL = {AFM_NAME, supported, workspace, L, kept, forward, backward};

}  // namespace afm_ctr
