// The wire format of protocol buffers, as far as tensorflow/core/example/{example,feature}.proto need it. Every message
// of them that has a length has a single byte for a tag: field 1, 2 or 3 and wire type 2.
#include "example.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace afm_ctr {
namespace {

constexpr uint8_t kField1 = 0x0A, kField2 = 0x12;
constexpr uint8_t kBytes = 0x0A, kFloats = 0x12, kIntegers = 0x1A;  // Feature.kind
constexpr uint8_t kOneVarint = 0x08, kOneFloat = 0x0D;              // field 1 of a list that is not packed

struct Span {
  const uint8_t* at;
  const uint8_t* end;

  bool empty() const { return at == end; }
  size_t size() const { return end - at; }
  bool is(const char* text, size_t length) const { return size() == length && memcmp(at, text, length) == 0; }

  bool expect(uint8_t byte) {
    if (empty() || *at != byte) return false;
    at++;
    return true;
  }

  bool varint(uint64_t* value) {
    uint64_t found = 0;
    for (int shift = 0; shift < 70; shift += 7) {
      if (empty()) return false;
      const uint8_t byte = *at++;
      if (shift == 63 && byte > 1) return false;  // more than 64 bits
      found |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) {
        *value = found;
        return true;
      }
    }
    return false;
  }

  // A field of this tag with a length; *inside are its bytes.
  bool field(uint8_t tag, Span* inside) {
    uint64_t length;
    if (!expect(tag) || !varint(&length) || length > size()) return false;
    *inside = Span{at, at + length};
    at += length;
    return true;
  }
};

// The one list of a Feature, of this kind.
bool list_of(Span feature, uint8_t kind, Span* list) { return feature.field(kind, list) && feature.empty(); }

// Of 64 bytes those that end a number, a bit each, the first one lowest.
uint64_t last_bytes(const uint8_t* at) {
  uint64_t ends = 0;
#if defined(__x86_64__)
  for (int n = 0; n < 64; n += 16) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at + n));
    ends |= static_cast<uint64_t>(~_mm_movemask_epi8(bytes) & 0xFFFF) << n;
  }
#else
  for (int n = 0; n < 64; n += 8) {
    uint64_t word;
    memcpy(&word, at + n, sizeof word);
    ends |= (~word >> 7 & 0x0101010101010101ull) * 0x0102040810204080ull >> 56 << n;
  }
#endif
  return ends;
}

// Exactly count numbers, which fill the bytes; *largest of them, the negative ones above all others.
bool varints(Span bytes, int64_t count, int64_t* to, uint64_t* largest) {
  *largest = 0;
  for (int64_t i = 0; i < count; i++) {
    uint64_t value;
    if (!bytes.varint(&value)) return false;
    to[i] = static_cast<int64_t>(value);
    *largest = std::max(*largest, value);
  }
  return bytes.empty();
}

// The same for numbers of four bytes or fewer, fast: lengths are hard to foresee, so the ends of 64 bytes are looked
// for at once, and the numbers are put together without a branch. False for longer ones, too.
bool short_varints(Span bytes, int64_t count, int64_t* to, uint64_t* largest) {
  const int64_t* const behind = to + count;
  const uint8_t* at = bytes.at;  // where the next number begins
  int32_t most = 0;
  for (const uint8_t* chunk = at; chunk < bytes.end; chunk += 64) {
    uint64_t ends = last_bytes(chunk);
    if (bytes.end - chunk < 64) ends &= (uint64_t{1} << (bytes.end - chunk)) - 1;
    int32_t words[64];
    bool longer = false;
    int n = 0;
    for (; ends; ends &= ends - 1) {
      const uint8_t* const next = chunk + __builtin_ctzll(ends) + 1;
      const int64_t length = next - at;
      uint32_t word;
      memcpy(&word, at, sizeof word);
      words[n++] = word & (~0u >> ((32 - 8 * length) & 31));
      longer |= length > 4;
      at = next;
    }
    if (longer || n > behind - to) return false;
    for (int i = 0; i < n; i++) {
      const int32_t word = words[i];
      words[i] = (word & 0x7F) | (word >> 1 & 0x3F80) | (word >> 2 & 0x1FC000) | (word >> 3 & 0xFE00000);
      most = std::max(most, words[i]);
      to[i] = words[i];
    }
    to += n;
  }
  *largest = most;
  return to == behind && at == bytes.end;
}

#if defined(__x86_64__)
// The same, sixteen numbers at once.
__attribute__((target("avx512f,avx512bw,avx512vbmi,avx512vbmi2"))) bool short_varints_avx512(
    Span bytes, int64_t count, int64_t* to, uint64_t* largest) {
  alignas(64) static constexpr uint8_t kPlaces[64] = {
      0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21,
      22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43,
      44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63};
  const __m512i places = _mm512_load_si512(kPlaces), before = _mm512_sub_epi8(places, _mm512_set1_epi8(1));
  const __m512i number = _mm512_and_si512(_mm512_srli_epi16(places, 2), _mm512_set1_epi8(15));  // 0 0 0 0 1 1 1 1 ...
  const __m512i byte = _mm512_and_si512(places, _mm512_set1_epi8(3));                           // 0 1 2 3 0 1 2 3 ...
  const int64_t* const behind = to + count;
  __m512i most = _mm512_setzero_si512();
  while (!bytes.empty()) {
    const __m512i chunk = _mm512_loadu_si512(bytes.at);
    uint64_t ends = ~_mm512_movepi8_mask(chunk);
    if (bytes.size() < 64) ends &= (uint64_t{1} << bytes.size()) - 1;
    const int n = __builtin_popcountll(ends);
    if (n == 0 || n > behind - to) return false;
    const __m512i lasts = _mm512_maskz_compress_epi8(ends, places);  // of each number, the place of its last byte
    const __m512i firsts = _mm512_maskz_add_epi8(~1ull, _mm512_permutexvar_epi8(before, lasts), _mm512_set1_epi8(1));
    for (int i = 0; i < n; i += 16) {
      const __m512i which = _mm512_add_epi8(number, _mm512_set1_epi8(static_cast<char>(i)));
      const __m512i last = _mm512_permutexvar_epi8(which, lasts);
      const __m512i at = _mm512_add_epi8(_mm512_permutexvar_epi8(which, firsts), byte);
      if (_mm512_cmplt_epu8_mask(at, last) & 0x8888888888888888ull) return false;  // more than four bytes
      const __m512i word = _mm512_maskz_permutexvar_epi8(_mm512_cmple_epu8_mask(at, last), at, chunk);
      __m512i value = _mm512_and_si512(word, _mm512_set1_epi32(0x7F));
      value = _mm512_or_si512(value, _mm512_and_si512(_mm512_srli_epi32(word, 1), _mm512_set1_epi32(0x3F80)));
      value = _mm512_or_si512(value, _mm512_and_si512(_mm512_srli_epi32(word, 2), _mm512_set1_epi32(0x1FC000)));
      value = _mm512_or_si512(value, _mm512_and_si512(_mm512_srli_epi32(word, 3), _mm512_set1_epi32(0xFE00000)));
      const uint32_t lanes = n - i < 16 ? (1u << (n - i)) - 1 : 0xFFFF;
      most = _mm512_mask_max_epu32(most, static_cast<__mmask16>(lanes), most, value);
      _mm512_mask_storeu_epi64(to + i, lanes & 0xFF, _mm512_cvtepu32_epi64(_mm512_castsi512_si256(value)));
      _mm512_mask_storeu_epi64(to + i + 8, lanes >> 8, _mm512_cvtepu32_epi64(_mm512_extracti64x4_epi64(value, 1)));
    }
    to += n;
    bytes.at += 64 - __builtin_clzll(ends);
  }
  *largest = _mm512_reduce_max_epu32(most);
  return to == behind;
}
#endif

using ShortVarints = bool (*)(Span, int64_t, int64_t*, uint64_t*);

ShortVarints find_short_varints(bool portable) {
#if defined(__x86_64__)
  static const bool able = __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vbmi") &&
                           __builtin_cpu_supports("avx512vbmi2");
  if (able && !portable) return short_varints_avx512;
#endif
  return short_varints;
}

// Exactly count integers.
bool integers(Span feature, int64_t count, bool portable, int64_t* to, uint64_t* largest) {
  Span list, packed;
  if (!list_of(feature, kIntegers, &list)) return false;
  if (!list.empty() && *list.at == kField1)
    return list.field(kField1, &packed) && list.empty() &&
           (find_short_varints(portable)(packed, count, to, largest) || varints(packed, count, to, largest));
  *largest = 0;
  for (int64_t i = 0; i < count; i++) {
    uint64_t value;
    if (!list.expect(kOneVarint) || !list.varint(&value)) return false;
    to[i] = static_cast<int64_t>(value);
    *largest = std::max(*largest, value);
  }
  return list.empty();
}

// Exactly count floats.
bool floats(Span feature, int64_t count, float* to) {
  Span list, packed;
  if (!list_of(feature, kFloats, &list)) return false;
  if (list.empty() || *list.at != kField1) {
    for (int64_t i = 0; i < count; i++) {
      if (!list.expect(kOneFloat) || list.size() < sizeof(float)) return false;
      memcpy(to + i, list.at, sizeof(float));
      list.at += sizeof(float);
    }
    return list.empty();
  }
  if (!list.field(kField1, &packed) || !list.empty()) return false;
  if (packed.size() != static_cast<size_t>(count) * sizeof(float)) return false;
  memcpy(to, packed.at, packed.size());
  return true;
}

bool one_text(Span feature, Span* text) {
  Span list;
  return list_of(feature, kBytes, &list) && list.field(kField1, text) && list.empty();
}

enum Known : unsigned { kIds = 1, kValues = 2, kLabel = 4, kWeight = 8, kGroup = 16, kKey = 32 };

// Which feature that is; 0 for one that is not of the contract.
unsigned known(const Span& name) {
  if (name.is("feature_ids", 11)) return kIds;
  if (name.is("feature_vals", 12)) return kValues;
  if (name.is("label", 5)) return kLabel;
  if (name.is("weight", 6)) return kWeight;
  if (name.is("group", 5)) return kGroup;
  if (name.is("key", 3)) return kKey;
  return 0;
}

bool read(unsigned which, Span feature, const Contract& contract, Row* row) {
  Span text;
  uint64_t largest;
  switch (which) {
    case kIds:
      return integers(feature, contract.slots, contract.portable, row->ids, &largest) &&
             largest < static_cast<uint64_t>(contract.feature_size);
    case kValues:
      return floats(feature, contract.slots, row->values);
    case kLabel:
      return floats(feature, 1, &row->label);
    case kWeight:
      return floats(feature, 1, &row->weight);
    case kGroup:
      row->has_group = true;
      return integers(feature, 1, contract.portable, &row->group, &largest);
    default:
      if (!one_text(feature, &text)) return false;
      row->key = text.at;
      row->key_size = text.size();
      return true;
  }
}

bool allowed(const Contract& contract, const Row& row) {
  int32_t wrong = 0;
  for (int64_t slot = 0; slot < contract.slots; slot++) {
    int32_t bits;
    memcpy(&bits, row.values + slot, sizeof bits);
    wrong |= (bits & 0x7F800000) == 0x7F800000;  // infinite or no number
  }
  if (wrong || !std::isfinite(row.weight) || row.weight < 0 || std::isinf(row.label)) return false;
  if (std::isnan(row.label)) return !contract.labelled;
  return !contract.binary || row.label == 0 || row.label == 1;
}

}  // namespace

bool parse_example(const uint8_t* data, size_t size, const Contract& contract, Row* row) {
  Span example{data, data + size}, features, entry, name, feature;
  row->label = std::numeric_limits<float>::quiet_NaN();
  row->weight = 1;
  row->group = 0;
  row->has_group = false;
  row->key = data;
  row->key_size = 0;
  if (!example.field(kField1, &features) || !example.empty()) return false;
  unsigned met = 0;
  while (!features.empty()) {
    if (!features.field(kField1, &entry) || !entry.field(kField1, &name) || !entry.field(kField2, &feature) ||
        !entry.empty())
      return false;
    const unsigned which = known(name);
    if (which == 0) continue;
    if (met & which || !read(which, feature, contract, row)) return false;
    met |= which;
  }
  return (met & kIds) && (met & kValues) && allowed(contract, *row);
}

}  // namespace afm_ctr
