// Attentional pooling on a GPU, forward and backward, without atomics: see docs/gpu.md.
//
// A block of NF threads (N in the backward pass) takes R rows at a time, and of each row a group of G slots. Two phases
// take turns:
//
//   pairs  a thread takes a tile of PI x PJ pairs and computes their scores, YC hidden units at a time; what the other
//          phase needs of pair (i, j) goes to shared memory, at [i][j] and, if j is in the group too, at [j][i];
//   slots  LANES threads take a slot i and add over all j in order. So nothing is scattered, and every sum has one
//          order: the results are the same bits in every run and for every number of blocks.
//
// With v_ij[y] = (gradient by the score of (i, j)) * [hidden unit y is active], the backward pass needs one matrix a
// slot alone: Z_i[x, y] = sum_j u_j[x] v_ij[y]. From it follow
//   du_i[x] = sum_y W[x, y] h[y] Z_i[x, y] + ...,   dW[x, y] = h[y] sum_i u_i[x] Z_i[x, y] / 2 = h[y] Q[x, y],
//   db[y] = h[y] n[y] with n[y] = sum_ij v_ij[y] / 2,   dh[y] = sum_x W[x, y] Q[x, y] + b[y] n[y],
// where the last one holds because an active unit is W[:, y] . (u_i * u_j) + b[y].
//
// Compiled at run time: the numbers in capitals are macros that gpu.py puts before this text. KR, TR are the widths
// k, t; K, T the same, padded with zeros to powers of two.
#define S (K + 4)   // stride of vectors in shared memory: 16 bytes aligned, neighbours in different banks
#define FP ((F + PJ - 1) / PJ * PJ)
#define FS (FP | 1)
#define GROUPS ((F + G - 1) / G)
#define LX (K / TX)
#define LY (T / TY)
#define LANES (LX * LY)
#define FLIGHT (N / LANES)  // slots that a block takes at once in the backward pass
#define MW ((T + 31) / 32)  // words of a pair's active units; unit y is bit (UNITS - 1 - y) % 32 of word y / 32
#define UNITS (T < 32 ? T : 32)
#define LW ((F + 31) / 32)  // words of a row's present slots
#define PAIRS (PI * PJ)
#define UP4(n) (((n) + 3) / 4 * 4)

#ifndef AFM_ON_CPU  // the tests define these, and run the kernels on threads
#define INFINITY __int_as_float(0x7f800000)
#define AFM_SYNC() __syncthreads()
#define AFM_SHARED(name) extern __shared__ float4 shared_memory[]; float* const name = (float*)shared_memory
#endif

typedef unsigned long long u64;
typedef unsigned int u32;
#if T <= 16
typedef unsigned short word;
#else
typedef u32 word;
#endif

// Bits moved up by one place, the sign of a number below them.
__device__ inline u32 shift_in(u32 bits, float number) { return __funnelshift_l(__float_as_uint(number), bits, 1); }

struct Arguments {
  const float *u, *W, *b, *h;     // [batch, F, KR], [KR, TR], [TR], [TR]
  const unsigned char* present;   // [batch, F]
  const long long* rows;          // [batch], read with dropout alone
  const int* plan;                // see plan_table in gpu.py
  int batch, threshold, scale_by_pairs;
  float keep;
  u64 base;
};

__device__ inline void load4(float* to, const float* from) {
  const float4 four = *(const float4*)from;
  to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
}

// The finaliser of splitmix64, as in interactions/dropout.py.
__device__ inline u64 mix(u64 x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}
#define GOLDEN 0x9E3779B97F4A7C15ull

// The greater one; a NaN stays.
__device__ inline float greater(float a, float b) { return b > a || b != b ? b : a; }

// What both kernels hold in shared memory of all rows and of the R rows at hand. Sizes: see shared_bytes in gpu.py.
struct Common {
  float *W, *b, *h;      // [K, T], [T], [T]
  float* u;              // [R, FP, S]; absent slots and the padding are zeros
  u64* key;              // [R], of dropout
  u32* bits;             // [R, LW], present slots
  unsigned char* here;   // [R, FP]
};

__device__ inline float* open(Common& C, float* memory) {
  C.W = memory;
  C.b = C.W + K * T;
  C.h = C.b + T;
  C.u = C.h + T;
  C.key = (u64*)(C.u + R * FP * S);
  C.bits = (u32*)(C.key + R);
  C.here = (unsigned char*)(C.bits + R * LW);
  return memory + K * T + 2 * T + R * FP * S + UP4(2 * R + R * LW + (R * FP + 3) / 4);
}

template <int THREADS>
__device__ inline void load_weights(const Arguments& A, const Common& C, int tid) {
  for (int n = tid; n < K * T; n += THREADS) {
    const int x = n / T, y = n % T;
    C.W[n] = x < KR && y < TR ? A.W[x * TR + y] : 0.0f;
  }
  for (int y = tid; y < T; y += THREADS) {
    C.b[y] = y < TR ? A.b[y] : 0.0f;
    C.h[y] = y < TR ? A.h[y] : 0.0f;
  }
}

// Vectors of rows [first, last), zeros where a slot is absent (whatever it holds) or a row does not exist.
template <int THREADS>
__device__ inline void load_rows(const Arguments& A, const Common& C, int first, int last, int tid) {
  for (int n = tid; n < R * FP; n += THREADS) {
    const int r = n / FP, f = n % FP;
    C.here[n] = first + r < last && f < F && A.present[(long long)(first + r) * F + f];
  }
  for (int r = tid; r < R; r += THREADS)
    C.key[r] = A.threshold && first + r < last ? mix((u64)A.rows[first + r] * GOLDEN + A.base) : 0;
  AFM_SYNC();
  constexpr int WIDE = KR % 4 ? 1 : 4, COUNT = R * FP * (K / WIDE), AHEAD = 4;  // several loads are under way at once
  for (int n0 = tid; n0 < COUNT; n0 += AHEAD * THREADS) {
    float values[AHEAD][WIDE];
#pragma unroll
    for (int m = 0; m < AHEAD; m++) {
      const int n = n0 + m * THREADS, x = n % (K / WIDE) * WIDE, f = n / (K / WIDE) % FP, r = n / (K / WIDE) / FP;
#pragma unroll
      for (int c = 0; c < WIDE; c++) values[m][c] = 0.0f;
      if (n < COUNT && x < KR && C.here[r * FP + f]) {
        const float* const from = A.u + ((long long)(first + r) * F + f) * KR + x;
        if (WIDE == 4) load4(values[m], from);
        else values[m][0] = *from;
      }
    }
#pragma unroll
    for (int m = 0; m < AHEAD; m++) {
      const int n = n0 + m * THREADS, x = n % (K / WIDE) * WIDE, row = n / (K / WIDE);
#pragma unroll
      for (int c = 0; c < WIDE; c++)
        if (n < COUNT) C.u[row * S + x + c] = values[m][c];
    }
  }
  for (int n = tid; n < R * LW; n += THREADS) {
    const int r = n / LW, f0 = n % LW * 32;
    u32 bits = 0;
    for (int f = f0; f < f0 + 32 && f < F; f++) bits |= (u32)C.here[r * FP + f] << (f - f0);
    C.bits[n] = bits;
  }
}

// The number of listed pairs of row r's present slots, counted by a warp, of which every thread gets it.
__device__ inline float count_pairs(const Arguments& A, const Common& C, int r, int lane) {
  const u32* listed = (const u32*)A.plan + A.plan[GROUPS];
  int twice = 0;
  for (int f = lane; f < F; f += 32)
    if (C.here[r * FP + f])
      for (int w = 0; w < LW; w++) twice += __popc(listed[f * LW + w] & C.bits[r * LW + w]);
#pragma unroll
  for (int other = 16; other > 0; other /= 2) twice += __shfl_xor_sync(0xffffffffu, twice, other);
  return (float)(twice / 2);
}

// A pair's number in the list.
__device__ inline int number(const Arguments& A, int i, int j) {
  return A.plan[A.plan[GROUPS] + F * LW + i * F + j];
}

__device__ inline bool dropped(const Arguments& A, u64 key, int number) {
  return (int)(mix(key + ((u64)number + 1) * GOLDEN) >> 40) < A.threshold;
}

// The scores of a tile of pairs of one row: slots i0 ... and j0 .... BACK: also the pairs' active units, and the
// products ge of u_i * u_j with the gradient g by what the pair adds to.
template <bool BACK>
__device__ inline void score(const Common& C, const float* u, const float* g, int i0, int j0, float* s, u32* active,
                             float* ge) {
#pragma unroll
  for (int q = 0; q < PAIRS; q++) {
    s[q] = 0.0f;
    if (BACK) {
      ge[q] = 0.0f;
#pragma unroll
      for (int w = 0; w < MW; w++) active[q * MW + w] = 0;
    }
  }
#pragma unroll
  for (int y0 = 0; y0 < T; y0 += YC) {
    float c[PAIRS][YC];
#pragma unroll
    for (int y = 0; y < YC; y++) {
      const float b = C.b[y0 + y];
#pragma unroll
      for (int q = 0; q < PAIRS; q++) c[q][y] = b;
    }
#pragma unroll 1
    for (int x0 = 0; x0 < K; x0 += 4) {
      float ui[PI][4], uj[PJ][4];
#pragma unroll
      for (int p = 0; p < PI; p++) load4(ui[p], u + (i0 + p) * S + x0);
#pragma unroll
      for (int p = 0; p < PJ; p++) load4(uj[p], u + (j0 + p) * S + x0);
      if (BACK && y0 == 0) {
#if BY_SLOT
        float gi[PI][4], gj[PJ][4];
#pragma unroll
        for (int p = 0; p < PI; p++) load4(gi[p], g + (i0 + p) * S + x0);
#pragma unroll
        for (int p = 0; p < PJ; p++) load4(gj[p], g + (j0 + p) * S + x0);
#else
        float gx[4];
        load4(gx, g + x0);
#endif
#pragma unroll
        for (int q = 0; q < PAIRS; q++)
#pragma unroll
          for (int x = 0; x < 4; x++) {
#if BY_SLOT
            const float by = gi[q / PJ][x] + gj[q % PJ][x];
#else
            const float by = gx[x];
#endif
            ge[q] += ui[q / PJ][x] * uj[q % PJ][x] * by;
          }
      }
#pragma unroll
      for (int x = 0; x < 4; x++) {
        float w[YC];
#pragma unroll
        for (int y = 0; y < YC; y += 4) load4(w + y, C.W + (x0 + x) * T + y0 + y);
#pragma unroll
        for (int q = 0; q < PAIRS; q++) {
          const float e = ui[q / PJ][x] * uj[q % PJ][x];
#pragma unroll
          for (int y = 0; y < YC; y++) c[q][y] += e * w[y];
        }
      }
    }
#pragma unroll
    for (int y = 0; y < YC; y++) {
      const float half = 0.5f * C.h[y0 + y];
#pragma unroll
      for (int q = 0; q < PAIRS; q++) {
        const float twice = c[q][y] + fabsf(c[q][y]);  // of the active part; a NaN stays
        s[q] += twice * half;
        // The sign of 0 - twice is that of an active unit.
        if (BACK) active[q * MW + (y0 + y) / 32] = shift_in(active[q * MW + (y0 + y) / 32], 0.0f - twice);
      }
    }
  }
}

extern "C" __global__ void __launch_bounds__(NF) afm_forward(Arguments A, float* pooled, float* lse) {
  AFM_SHARED(memory);
  const int tid = threadIdx.x;
  Common C;
  float* mixed = open(C, memory);           // [R, FP, S], u_i * sum_j w_ij u_j
  float* E = mixed + R * FP * S;            // [R, G, FS], scores, then weights
  float* highest = E + R * G * FS;          // [R, FP], of the slot's scores
  float* sums = highest + R * FP;           // [R, FP]
  float* factor = sums + R * FP;            // [R]
  unsigned char* off = (unsigned char*)(factor + R);  // [R, G, FS], dropped pairs
  load_weights<NF>(A, C, tid);
  for (long long first = (long long)blockIdx.x * R; first < A.batch; first += (long long)gridDim.x * R) {
    AFM_SYNC();
    load_rows<NF>(A, C, (int)first, A.batch, tid);
    for (int group = 0; group < GROUPS; group++) {
      const int g0 = group * G, size = GROUPS == 1 ? F : F - g0 < G ? F - g0 : G;
#pragma unroll 4
      for (int n = tid; n < R * G * FS; n += NF) E[n] = -INFINITY;
      AFM_SYNC();
      const int tiles0 = A.plan[group], tiles = A.plan[group + 1] - tiles0;
      for (int item = tid; item < R * tiles; item += NF) {
        const int r = item / tiles, tile = A.plan[tiles0 + item % tiles], i0 = tile & 0xff, j0 = tile >> 8 & 0xff;
        float s[PAIRS];
        score<false>(C, C.u + r * FP * S, nullptr, i0, j0, s, nullptr, nullptr);
#pragma unroll
        for (int q = 0; q < PAIRS; q++) {
          const int i = i0 + q / PJ, j = j0 + q % PJ;
          const bool both = GROUPS == 1 || (j >= g0 && j < g0 + size);
          if (!(tile >> (16 + q) & 1) || !C.here[r * FP + i] || !C.here[r * FP + j]) continue;
          const int here = (r * G + i - g0) * FS + j, there = (r * G + j - g0) * FS + i;
          const unsigned char drop = A.threshold && dropped(A, C.key[r], number(A, i, j));
          E[here] = s[q];
          off[here] = drop;
          if (both) {
            E[there] = s[q];
            off[there] = drop;
          }
        }
      }
      AFM_SYNC();
      // Each slot's softmax has a scale of its own, until all are known. Four threads take a slot.
      for (int start = 0; start < R * size; start += NF / 4) {
        const int item = start + tid / 4, r = item / size, il = item % size;
        const bool valid = item < R * size;
        float *const e = E + (valid ? r * G + il : 0) * FS, top = -INFINITY, sum = 0.0f;
        const unsigned char* const drop = off + (valid ? r * G + il : 0) * FS;
        if (valid)
#pragma unroll 4
          for (int j = tid % 4; j < F; j += 4) top = greater(top, e[j]);
        top = greater(top, __shfl_xor_sync(0xffffffffu, top, 1));
        top = greater(top, __shfl_xor_sync(0xffffffffu, top, 2));
        if (valid)
#pragma unroll 4
          for (int j = tid % 4; j < F; j += 4) {
            const float w = e[j] == -INFINITY ? 0.0f : expf(e[j] - top);
            sum += w;
            e[j] = A.threshold ? (w == 0.0f || drop[j] ? 0.0f : w * A.keep) : w;
          }
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        if (valid && tid % 4 == 0) {
          highest[r * FP + g0 + il] = top;
          sums[r * FP + g0 + il] = sum;
        }
      }
      AFM_SYNC();
      const int fours = (size + 3) / 4;
      for (int item = tid; item < R * fours * (K / 4); item += NF) {
        const int x = item % (K / 4) * 4, i0 = item / (K / 4) % fours * 4, r = item / (K / 4) / fours;
        const float* const u = C.u + r * FP * S + x;
        const float* e[4];
        float acc[4][4];
#pragma unroll
        for (int p = 0; p < 4; p++) {
          e[p] = E + (r * G + (i0 + p < size ? i0 + p : size - 1)) * FS;
#pragma unroll
          for (int c = 0; c < 4; c++) acc[p][c] = 0.0f;
        }
#pragma unroll 4
        for (int j = 0; j < F; j++) {
          float uj[4];
          load4(uj, u + j * S);
#pragma unroll
          for (int p = 0; p < 4; p++) {
            const float w = e[p][j];
#pragma unroll
            for (int c = 0; c < 4; c++) acc[p][c] += w * uj[c];
          }
        }
#pragma unroll
        for (int p = 0; p < 4; p++)
          if (i0 + p < size)
#pragma unroll
            for (int c = 0; c < 4; c++) {
              const int i = g0 + i0 + p;
              mixed[(r * FP + i) * S + x + c] = u[i * S + c] * acc[p][c];
            }
      }
      AFM_SYNC();
    }
    for (int r = tid / 32; r < R; r += NF / 32) {  // a warp a row
      float top = -INFINITY, sum = 0.0f;
      for (int f = tid % 32; f < F; f += 32) top = greater(top, highest[r * FP + f]);
#pragma unroll
      for (int lane = 16; lane > 0; lane /= 2) top = greater(top, __shfl_xor_sync(0xffffffffu, top, lane));
      for (int f = tid % 32; f < F; f += 32) {
        const float own = highest[r * FP + f], shrink = own == -INFINITY ? 0.0f : expf(own - top);
        sum += sums[r * FP + f] * shrink;
        sums[r * FP + f] = shrink;
      }
#pragma unroll
      for (int lane = 16; lane > 0; lane /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lane);
      sum *= 0.5f;  // every pair was seen from both of its slots
      const float count = count_pairs(A, C, r, tid % 32);
      const bool any = count > 0.0f;
      if (tid % 32 == 0) {
        factor[r] = any ? (A.scale_by_pairs ? count : 1.0f) / sum : 0.0f;
        if (first + r < A.batch) lse[first + r] = any ? top + logf(sum) : 0.0f;
      }
    }
    AFM_SYNC();
#if BY_SLOT
    for (int n = tid; n < R * F * KR; n += NF) {
      const int x = n % KR, f = n / KR % F, r = n / KR / F;
      if (first + r < A.batch)
        pooled[((first + r) * F + f) * KR + x] =
            mixed[(r * FP + f) * S + x] * sums[r * FP + f] * factor[r];
    }
#else
    for (int n = tid; n < R * KR; n += NF) {
      const int x = n % KR, r = n / KR;
      float p = 0.0f;
      for (int f = 0; f < F; f++) p += mixed[(r * FP + f) * S + x] * sums[r * FP + f];
      if (first + r < A.batch) pooled[(first + r) * KR + x] = p * 0.5f * factor[r];
    }
#endif
  }
}

// Rows are cut into chunks of per_chunk, a multiple of R; partial receives a chunk's Q and n: [chunks, T, K + 1].
extern "C" __global__ void __launch_bounds__(N)
    afm_backward(Arguments A, const float* pooled, const float* lse, const float* upstream, float* du, float* partial,
                 int chunks, int per_chunk) {
  AFM_SHARED(memory);
  const int tid = threadIdx.x;
  Common C;
  float* g = open(C, memory);              // [R, FP, S] by slot, else [R, K]: the gradient by the pooled vectors
  float* along = g + R * (BY_SLOT ? FP * S : K);  // [R], its product with them
  float2* D = (float2*)(along + UP4(R));   // [R, G, FS]: by the score, and the pair's weight
  word* active = (word*)(D + R * G * FS);  // [R, G, FS, MW]
  load_weights<N>(A, C, tid);
  const int flight = tid / LANES, lx = tid % LANES / LY * TX, ly = tid % LY * TY;
  for (int chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
    float Q[TX][TY], n_[TY];
#pragma unroll
    for (int y = 0; y < TY; y++) {
      n_[y] = 0.0f;
#pragma unroll
      for (int x = 0; x < TX; x++) Q[x][y] = 0.0f;
    }
    const long long begin = (long long)chunk * per_chunk;
    const int last = begin + per_chunk < A.batch ? (int)(begin + per_chunk) : A.batch;
    for (int first = (int)begin; first < last; first += R) {
      AFM_SYNC();
      load_rows<N>(A, C, first, last, tid);
      const int slots = BY_SLOT ? F : 1, width = BY_SLOT ? FP * S : K, stride = BY_SLOT ? S : K;
      if (BY_SLOT)
        for (int n = tid; n < R * width; n += N) g[n] = 0.0f;
      AFM_SYNC();
      for (int r = tid / 32; r < R; r += N / 32) {  // a warp a row
        const float scale = A.scale_by_pairs ? count_pairs(A, C, r, tid % 32) : 1.0f;
        const long long row = first + r;
        float sum = 0.0f;
#pragma unroll 4
        for (int n = tid % 32; n < slots * K; n += 32) {
          const int x = n % K, f = n / K;
          float by = 0.0f;
          if (x < KR && row < last && (!BY_SLOT || C.here[r * FP + f])) {
            by = upstream[(row * slots + f) * KR + x];
            sum += by * pooled[(row * slots + f) * KR + x];
          }
          g[r * width + f * stride + x] = by * scale;
        }
#pragma unroll
        for (int lane = 16; lane > 0; lane /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lane);
        if (tid % 32 == 0) along[r] = sum;
      }
      for (int group = 0; group < GROUPS; group++) {
        const int g0 = group * G, size = GROUPS == 1 ? F : F - g0 < G ? F - g0 : G;
#pragma unroll 4
        for (int n = tid; n < R * G * FS; n += N) D[n] = make_float2(0.0f, 0.0f);
        AFM_SYNC();
        const int tiles0 = A.plan[group], tiles = A.plan[group + 1] - tiles0;
        for (int item = tid; item < R * tiles; item += N) {
          const int r = item / tiles, tile = A.plan[tiles0 + item % tiles], i0 = tile & 0xff, j0 = tile >> 8 & 0xff;
          float s[PAIRS], ge[PAIRS];
          u32 on[PAIRS * MW];
          score<true>(C, C.u + r * FP * S, g + r * width, i0, j0, s, on, ge);
#pragma unroll
          for (int q = 0; q < PAIRS; q++) {
            const int i = i0 + q / PJ, j = j0 + q % PJ;
            const bool both = GROUPS == 1 || (j >= g0 && j < g0 + size);
            if (!(tile >> (16 + q) & 1) || !C.here[r * FP + i] || !C.here[r * FP + j]) continue;
            const int here = (r * G + i - g0) * FS + j, there = (r * G + j - g0) * FS + i;
            const float a = expf(s[q] - lse[first + r]);
            const float w = A.threshold ? (dropped(A, C.key[r], number(A, i, j)) ? 0.0f : a * A.keep) : a;
            const float2 d = make_float2(w * ge[q] - a * along[r], w);  // g holds the scale
            D[here] = d;
            if (both) D[there] = d;
#pragma unroll
            for (int m = 0; m < MW; m++) {
              active[here * MW + m] = (word)on[q * MW + m];
              if (both) active[there * MW + m] = (word)on[q * MW + m];
            }
          }
        }
        AFM_SYNC();
        for (int start = 0; start < R * size; start += FLIGHT) {
          const int item = start + flight, r = item / size, il = item % size, i = g0 + il;
          const bool valid = item < R * size;
          const float* const u = C.u + (valid ? r : 0) * FP * S;
          const float* const gr = g + (valid ? r : 0) * width;
          float Z[TX][TY], weighted[TX], other[TX];
#pragma unroll
          for (int x = 0; x < TX; x++) {
            weighted[x] = other[x] = 0.0f;
#pragma unroll
            for (int y = 0; y < TY; y++) Z[x][y] = 0.0f;
          }
          if (valid && C.here[r * FP + i]) {
            const float2* const d = D + (r * G + il) * FS;
            const word* const on = active + (r * G + il) * FS * MW + ly / 32;
#pragma unroll 3
            for (int j = 0; j < F; j++) {
              const float2 dj = d[j];
              const u32 bits = on[j * MW] >> (UNITS - TY - ly % 32);
              float uj[TX], v[TY];
#pragma unroll
              for (int x = 0; x < TX; x += 4) load4(uj + x, u + j * S + lx + x);
#pragma unroll
              for (int y = 0; y < TY; y++) {
                v[y] = bits >> (TY - 1 - y) & 1 ? dj.x : 0.0f;
                n_[y] += v[y];
              }
#pragma unroll
              for (int x = 0; x < TX; x++) {
                weighted[x] += dj.y * uj[x];
#pragma unroll
                for (int y = 0; y < TY; y++) Z[x][y] += uj[x] * v[y];
              }
#if BY_SLOT
              float gj[TX];
#pragma unroll
              for (int x = 0; x < TX; x += 4) load4(gj + x, gr + j * S + lx + x);
#pragma unroll
              for (int x = 0; x < TX; x++) other[x] += dj.y * (uj[x] * gj[x]);
#endif
            }
          }
          float by[TX];
#pragma unroll
          for (int x = 0; x < TX; x++) {
            const float ui = valid ? u[i * S + lx + x] : 0.0f;
            by[x] = 0.0f;
#pragma unroll
            for (int y = 0; y < TY; y++) {
              Q[x][y] += ui * Z[x][y];
              by[x] += C.W[(lx + x) * T + ly + y] * (C.h[ly + y] * Z[x][y]);
            }
#pragma unroll
            for (int lane = LY / 2; lane > 0; lane /= 2) by[x] += __shfl_xor_sync(0xffffffffu, by[x], lane);
          }
          if (valid && ly == 0)
#pragma unroll
            for (int x = 0; x < TX; x++)
              if (lx + x < KR && first + r < last)
                du[((long long)(first + r) * F + i) * KR + lx + x] =
                    by[x] + gr[(BY_SLOT ? i * S : 0) + lx + x] * weighted[x] + other[x];
        }
        AFM_SYNC();
      }
    }
    // The chunk's sums: first over the slots of a warp, then over the warps, in order.
#if LANES < 32
#pragma unroll
    for (int lane = LANES; lane < 32; lane *= 2)
#pragma unroll
      for (int y = 0; y < TY; y++) {
        n_[y] += __shfl_xor_sync(0xffffffffu, n_[y], lane);
#pragma unroll
        for (int x = 0; x < TX; x++) Q[x][y] += __shfl_xor_sync(0xffffffffu, Q[x][y], lane);
      }
    const int copies = N / 32, copy = tid / 32;
    const bool mine = tid % 32 < LANES;
#else
    const int copies = FLIGHT, copy = flight;
    const bool mine = true;
#endif
    float* const sum = g;  // [T, K + 1]; everything in shared memory but the weights is free now
    for (int c = 0; c < copies; c++) {
      if (mine && copy == c)
#pragma unroll
        for (int y = 0; y < TY; y++) {
          float* const to = sum + (ly + y) * (K + 1);
#pragma unroll
          for (int x = 0; x < TX; x++) to[lx + x] = c ? to[lx + x] + Q[x][y] : Q[x][y];
          if (lx == 0) to[K] = c ? to[K] + n_[y] : n_[y];
        }
      AFM_SYNC();
    }
    for (int n = tid; n < T * (K + 1); n += N) partial[(long long)chunk * (T * (K + 1)) + n] = 0.5f * sum[n];
    AFM_SYNC();
  }
}

// The chunks' sums added up in order; a block of COLLECT threads a hidden unit.
extern "C" __global__ void __launch_bounds__(COLLECT)
    afm_collect(Arguments A, const float* partial, int chunks, float* dW, float* db, float* dh) {
  AFM_SHARED(memory);  // [COLLECT]
  const int tid = threadIdx.x, y = blockIdx.x, x = tid % (K + 1), part = tid / (K + 1), parts = COLLECT / (K + 1);
  float sum = 0.0f;
  if (part < parts)
#pragma unroll 4
    for (int chunk = part; chunk < chunks; chunk += parts)
      sum += partial[((long long)chunk * T + y) * (K + 1) + x];
  memory[tid] = sum;
  AFM_SYNC();
  if (tid <= K) {
    sum = 0.0f;
    for (int p = 0; p < parts; p++) sum += memory[p * (K + 1) + tid];
  }
  AFM_SYNC();
  if (tid <= K) memory[tid] = sum;
  AFM_SYNC();
  const float h = A.h[y];
  if (tid < KR) dW[tid * TR + y] = h * memory[tid];
  if (tid == 0) {
    const float n = memory[K];
    float product = A.b[y] * n;
    for (int p = 0; p < KR; p++) product += A.W[p * TR + y] * memory[p];
    db[y] = h * n;
    dh[y] = product;
  }
}
