// The workspace of a thread, and L rows at a time: their vectors, their pairs and the scores of them.
//
// A group of L rows is computed with a lane for each row, so that no pair needs sums over lanes, whatever the number of
// slots. A row's results do not depend on the others of its group: each lane adds in the order of its own pairs, and in
// between only zeros.
// Included by kernel.h alone, once an instruction set.
#ifndef AFM_CTR_NATIVE_GROUP_H_
#define AFM_CTR_NATIVE_GROUP_H_

#include "lanes.h"
#include "problem.h"

namespace afm_ctr {
namespace {

constexpr int PAIRS = 128;              // of a block
constexpr int TILE = 3;                 // pairs that are scored at once, and
constexpr int UNITS = L == 16 ? 8 : 4;  // of how many units the sums are held in registers

typedef uint16_t units;  // a bit for each of WORD units of the hidden layer, whether it is above 0
typedef units uvec __attribute__((vector_size(L * 2), aligned(L * 2), may_alias));
constexpr int WORD = 16, SPAN = WORD / L;
constexpr int GROUPED = 8, GROUPS = WORD / GROUPED;  // units whose subsets have a table of sums, and such groups of a word
constexpr int SUBSETS = 1 << GROUPED;
constexpr int WIDE = 2;  // panels of vectors that the backward pass takes at once

struct Space {
  int64_t kw, tw, words;  // widths in panels, and of the hidden layer in words
  int64_t groups;         // of units
  int64_t room;           // for the pairs of a row
  float *W, *b, *h;       // W in panels of UNITS [.][k], padded
  float *zeros;           // [k]: the vector that a row has in no place
  // A group of rows, a lane for each.
  float *U;               // [slots][k]
  float *G;               // sums or gradients of the pooled vectors: [k], by slot [slots][k]
  int32_t *on, *slot;     // -1 where a place holds a slot, and which [slots]
  float *E;               // products of a tile [k][TILE]
  float *s;               // scores [room], and then `above`; here, or where they are kept
  units *above;           // which of a pair's hidden layer is above 0 [words][room]
  uint16_t *stays;        // with dropout, a bit for each row that keeps a pair [room]; beside the scores
  wide *number;           // of a slot's pairs: what its number as the first slot adds, and as the second [slots][2][2]
  float *w, *ds;          // weights, and what the gradients by the scores are made of [room]
  float *w_of, *ds_of;    // the same row by row [L][room]
  units *above_of;        // [words][L][room]
  // One row.
  float *u, *du;          // [slots, kw * L]
  float *g_padded;        // [kw * L], by slot [slots, kw * L]
  const float* g;
  float *R;               // sums of rows of hW [WIDE][PAIRS]
  float *db;              // [tw * L]
  float *subsets;         // what `subsets_of` finds
  const int32_t *i, *j;   // pairs of a group
  int32_t *some;          // room for i and j of a group and of a row [4][room]
};

AFM_INLINE int64_t words_of(int64_t t) { return (t + WORD - 1) / WORD; }
AFM_INLINE int64_t room_of(int64_t pairs) { return (pairs + TILE - 1 + 15) / 16 * 16; }
AFM_INLINE int64_t padded(int64_t t) { return (t + 15) / 16 * 16; }

int64_t kept(const Problem& P) {
  const int64_t bytes = 4 + words_of(P.t) * static_cast<int64_t>(sizeof(units));
  return padded(room_of(P.pairs) * (L * bytes + (P.threshold ? 2 : 0)) / 4);
}

AFM_INLINE void keep_scores(Space* X, float* at) {
  X->s = at;
  X->above = reinterpret_cast<units*>(at + X->room * L);
  X->stays = X->above + X->words * X->room * L;
}

// Lay out the workspace, what must begin as zeros before U; returns its size in floats.
size_t lay_out(const Problem& P, float* at, Space* X) {
  const int64_t kw = panels(P.k), kp = kw * L, tp = padded(P.t), words = words_of(P.t), room = room_of(P.pairs);
  const int64_t groups = words * GROUPS, sums = P.by_slot ? P.slots : 1;
  const float* const start = at;
  auto take = [&at](int64_t n) {
    float* here = at;
    at += (n + 15) / 16 * 16;
    return here;
  };
  auto whole = [&take](int64_t n) { return reinterpret_cast<int32_t*>(take(n)); };
  *X = Space{};
  X->kw = kw, X->tw = panels(P.t), X->words = words, X->groups = groups, X->room = room;
  X->W = take(P.k * tp), X->b = take(tp), X->h = take(tp);
  X->zeros = take(P.k);
  X->u = take(P.slots * kp), X->du = take(P.slots * kp), X->g_padded = take(sums * kp);
  X->U = take(P.slots * P.k * L), X->G = take(sums * P.k * L);
  X->on = whole(P.slots * L), X->slot = whole(P.slots * L);
  X->number = reinterpret_cast<wide*>(take(P.slots * 4 * L));
  X->E = take(TILE * P.k * L);
  X->w = take(room * L), X->ds = take(room * L);
  X->w_of = take(room * L), X->ds_of = take(room * L);
  X->above_of = reinterpret_cast<units*>(take(words * room * L / 2));
  X->R = take(WIDE * L * PAIRS);
  X->db = take(tp), X->subsets = take(kw * groups * SUBSETS * 2 * L);
  X->some = whole(4 * room);
  keep_scores(X, take(kept(P)));
  return at - start;
}

size_t workspace(const Problem& P) {
  Space X;
  return lay_out(P, nullptr, &X);
}

Space prepare(const Problem& P, float* memory) {
  Space X;
  lay_out(P, memory, &X);
  memset(memory, 0, (X.U - memory) * sizeof(float));
  for (int64_t x = 0; x < P.k; x++)
    for (int64_t y = 0; y < P.t; y++) X.W[(y / UNITS * P.k + x) * UNITS + y % UNITS] = P.W[x * P.t + y];
  memcpy(X.b, P.b, P.t * sizeof(float));
  memcpy(X.h, P.h, P.t * sizeof(float));
  return X;
}

// A vector of k numbers of each of L rows, to or from a lane for each.
AFM_INLINE void to_lanes(const float* const (&from)[L], int64_t k, float* to) {
  int64_t x = 0;
  for (; x + L <= k; x += L) {
    vec v[L];
    AFM_UNROLL
    for (int lane = 0; lane < L; lane++) v[lane] = *reinterpret_cast<const loose*>(from[lane] + x);
    transpose(v);
    AFM_UNROLL
    for (int r = 0; r < L; r++) store(to + (x + r) * L, v[r]);
  }
  for (; x < k; x++)
    for (int lane = 0; lane < L; lane++) to[x * L + lane] = from[lane][x];
}

AFM_INLINE void from_lanes(const float* from, int64_t k, float* const (&to)[L]) {
  int64_t x = 0;
  for (; x + L <= k; x += L) {
    vec v[L];
    AFM_UNROLL
    for (int r = 0; r < L; r++) v[r] = load(from + (x + r) * L);
    transpose(v);
    AFM_UNROLL
    for (int lane = 0; lane < L; lane++) *reinterpret_cast<loose*>(to[lane] + x) = v[lane];
  }
  for (; x < k; x++)
    for (int lane = 0; lane < L; lane++) to[lane][x] = from[x * L + lane];
}

// Numbers that the next group will read or write, to be asked for a little at a time: asked for all at once they would
// wait for each other.
struct Ahead {
  const float* at;
  int64_t size, asked;

  AFM_INLINE void ask(int64_t part, int64_t parts) {
    for (const int64_t end = size * part / parts; asked < end; asked += 16) __builtin_prefetch(at + asked, 0, 2);
  }
};

// At most L rows from `first` on. Where not all slots of all of them are present, and all pairs are listed, each lane
// has the present slots of its row in its first places, so that only as many places are paired as the fullest row has.
struct Group {
  int64_t first, rows;
  int64_t places, pairs;
  bool full;   // every slot of each of L rows is present
  bool moved;  // a place is not the slot of the same number
  ivec count;  // pairs of a row
};

// -1 for the rows that have pair q.
AFM_INLINE ivec both(const Space& X, int64_t q) { return load(X.on + X.i[q] * L) & load(X.on + X.j[q] * L); }

// Where the vectors of a place, or those of the whole, lie in an array [rows, (slots,) k]; none of a row without one.
template <typename Number>
AFM_INLINE void find(const Problem& P, const Space& X, const Group& group, int64_t place, bool by_slot, Number* array,
                     Number* none, Number* (&found)[L]) {
  const int64_t step = (by_slot ? P.slots : 1) * P.k;
  Number* at = array + group.first * step + (by_slot && !group.moved ? place * P.k : 0);
  for (int lane = 0; lane < L; lane++, at += step) {
    found[lane] = at;
    if (group.full) continue;
    if (by_slot && group.moved) found[lane] += X.slot[place * L + lane] * P.k;
    if (lane >= group.rows || (by_slot && !X.on[place * L + lane])) found[lane] = none;
  }
}

AFM_INLINE Ahead next_of(const Group& group, int64_t end, const float* array, int64_t width) {
  const int64_t next = group.first + L;
  return {array + next * width, smaller(L, end - next) * width, 0};
}

AFM_APART Group open_group(const Problem& P, Space* X, int64_t first, int64_t end) {
  Group group{first, smaller(L, end - first), P.slots, P.pairs, false, false, ivec{}};
  const bool* const present = P.present + first * P.slots;
  group.full = group.rows == L && memchr(present, 0, L * P.slots) == nullptr;
  group.moved = !group.full && P.all_pairs;
  if (!group.full) {
    memset(X->on, 0, P.slots * L * sizeof(int32_t));
    memset(X->slot, 0, P.slots * L * sizeof(int32_t));  // read, but not used, where a row has no such place
    group.places = group.moved ? 0 : P.slots;
    for (int64_t lane = 0; lane < group.rows; lane++) {
      int64_t place = 0;
      for (int64_t f = 0; f < P.slots; f++) {
        const int64_t at = (group.moved ? place : f) * L + lane;
        X->slot[at] = static_cast<int32_t>(f);
        X->on[at] |= -static_cast<int32_t>(present[lane * P.slots + f]);
        place += present[lane * P.slots + f];
      }
      group.places = group.places < place ? place : group.places;
    }
  }
  for (int64_t place = 0; place < group.places; place++) {
    const float* from[L];
    find<const float>(P, *X, group, place, true, P.u, X->zeros, from);
    to_lanes(from, P.k, X->U + place * P.k * L);
  }
  X->i = P.i;
  X->j = P.j;
  if (group.moved) {
    int32_t *const i = X->some, *const j = i + X->room;
    int64_t n = 0;
    for (int32_t one = 0; one < group.places; one++)
      for (int32_t other = one + 1; other < group.places; other++, n++) {
        i[n] = one;
        j[n] = other;
      }
    for (int64_t q = n; q < n + TILE - 1; q++) i[q] = j[q] = 0;
    group.pairs = n;
    X->i = i;
    X->j = j;
  }
  if (group.full) {
    group.count += static_cast<int32_t>(P.pairs);
  } else {
    for (int64_t q = 0; q < group.pairs; q++) group.count -= both(*X, q);
  }
  return group;
}

// Scores of all pairs, -inf of those that a row has not, and which units are above 0.
AFM_APART void score(const Problem& P, const Space& X, const Group& group, Ahead* ahead) {
  const int64_t k = P.k, stride = k * L;
  constexpr bool FUSED = L == 16;  // whether there are registers to make the products while they are first read
  for (int64_t q = 0; q < group.pairs; q += TILE) {
    for (int a = 0; a < 2; a++) ahead[a].ask(smaller(q + TILE, group.pairs), group.pairs);
    const float *one[TILE], *other[TILE];
    AFM_UNROLL
    for (int r = 0; r < TILE; r++) one[r] = X.U + X.i[q + r] * stride, other[r] = X.U + X.j[q + r] * stride;
    for (int64_t x = 0; x < k && !FUSED; x++) {
      AFM_UNROLL
      for (int r = 0; r < TILE; r++) store(X.E + (x * TILE + r) * L, load(one[r] + x * L) * load(other[r] + x * L));
    }
    vec s[TILE];
    AFM_UNROLL
    for (int r = 0; r < TILE; r++) s[r] = vec{};
    const float* W = X.W;
    for (int64_t word = 0; word < X.words; word++) {
      ivec bits[TILE];
      AFM_UNROLL
      for (int r = 0; r < TILE; r++) bits[r] = ivec{};
      AFM_UNROLL
      for (int v = 0; v < WORD; v += UNITS) {
        const int64_t y = word * WORD + v;
        if (y >= P.t) break;
        vec c[UNITS][TILE];
        AFM_UNROLL
        for (int u = 0; u < UNITS; u++) {
          AFM_UNROLL
          for (int r = 0; r < TILE; r++) c[u][r] = all(X.b[y + u]);
        }
        const auto add = [&](const vec(&e)[TILE]) __attribute__((always_inline)) {
          AFM_UNROLL
          for (int u = 0; u < UNITS; u++) {
            const vec w = all(W[u]);
            AFM_UNROLL
            for (int r = 0; r < TILE; r++) c[u][r] += e[r] * w;
          }
          W += UNITS;
        };
        float* E = X.E;
        vec e[TILE];
        if (FUSED && y == 0) {
          for (int64_t x = 0; x < k; x++, E += TILE * L) {
            AFM_UNROLL
            for (int r = 0; r < TILE; r++) store(E + r * L, e[r] = load(one[r] + x * L) * load(other[r] + x * L));
            add(e);
          }
        } else {
          for (int64_t x = 0; x < k; x++, E += TILE * L) {
            AFM_UNROLL
            for (int r = 0; r < TILE; r++) e[r] = load(E + r * L);
            add(e);
          }
        }
        AFM_UNROLL
        for (int u = 0; u < UNITS; u++) {
          const vec h = all(X.h[y + u]);
          AFM_UNROLL
          for (int r = 0; r < TILE; r++) {
            bits[r] = mark(bits[r], c[u][r], 1 << (v + u));
            s[r] += relu(c[u][r]) * h;
          }
        }
      }
      AFM_UNROLL
      for (int r = 0; r < TILE; r++) {
        units* const at = X.above + (word * X.room + q + r) * L;
        *reinterpret_cast<uvec*>(at) = __builtin_convertvector(bits[r], uvec);
      }
    }
    AFM_UNROLL
    for (int r = 0; r < TILE; r++) {
      if (!group.full) s[r] = both(X, q + r) != 0 ? s[r] : all(-INFINITY);
      store(X.s + (q + r) * L, s[r]);
    }
  }
}

// Which pairs dropout keeps. A pair's number is its place in the list of all pairs of slots, from 1 on.
AFM_APART void draw(const Problem& P, const Space& X, const Group& group) {
  constexpr int HALF = L / 2;
  wide keys[2] = {};
  for (int64_t lane = 0; lane < group.rows; lane++)
    keys[lane / HALF][lane % HALF] = mix(static_cast<uint64_t>(P.rows[group.first + lane]) * GOLDEN + P.base);
  for (int64_t place = 0; place < group.places && group.moved; place++)
    for (int lane = 0; lane < L; lane++) {
      const int64_t f = X.slot[place * L + lane];
      wide* const number = X.number + place * 4 + lane / HALF;
      number[0][lane % HALF] = (f * P.slots - f * (f + 1) / 2 - f) * GOLDEN;
      number[2][lane % HALF] = f * GOLDEN;
    }
  for (int64_t q = 0; q < group.pairs; q++) {
    int stays = 0;
    AFM_UNROLL
    for (int half = 0; half < 2; half++) {
      wide at = keys[half];
      if (group.moved)
        at += X.number[X.i[q] * 4 + half] + X.number[X.j[q] * 4 + 2 + half];
      else
        at += static_cast<uint64_t>(q + 1) * GOLDEN;
      stays |= at_least(mix_upper(at) >> 40, P.threshold) << half * HALF;
    }
    X.stays[q] = static_cast<uint16_t>(stays);
  }
}

// Weights of pair q after dropout.
AFM_INLINE vec dropped(const Problem& P, const Space& X, int64_t q, vec w) {
  return only(X.stays[q], 0, w * P.keep_scale);
}

}  // namespace
}  // namespace afm_ctr

#endif  // AFM_CTR_NATIVE_GROUP_H_
