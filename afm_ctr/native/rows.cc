// Lines to cells, and cells to the ids and values of rows, for preparation. No TensorFlow here.
//
// The ids and values are those of afm_ctr/features, which says what they are; beam_jobs/row_plan.py says which are made.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "fingerprint.h"
#include "moments.h"
#include "number.h"
#include "siphash.h"
#include "texts.h"

#ifdef __SSE2__
#include <immintrin.h>
#endif

namespace afm_ctr {
namespace {

constexpr int64_t kBlock = 64;  // rows; their cells stay in the cache for all fields
enum Kind : int32_t { kBuckets, kValue, kLogarithm, kHash, kKeyedHash, kVocabulary, kIds, kTime, kLibfm };

// By what share ours and TensorFlow's ln(1 + x) may differ at most. Measured: 5 · 2^-53.
constexpr double kLogarithmsDiffer = 0x1p-50;

// Numbers below the normal ones count as 0, as they do in TensorFlow's threads.
class FlushDenormals {
 public:
#ifdef __SSE2__
  FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(before_); }

 private:
  const unsigned before_;
#elif defined(__aarch64__)
  FlushDenormals() {
    asm volatile("mrs %0, fpcr" : "=r"(before_));
    asm volatile("msr fpcr, %0" : : "r"(before_ | uint64_t{1} << 24));
  }
  ~FlushDenormals() { asm volatile("msr fpcr, %0" : : "r"(before_)); }

 private:
  uint64_t before_;
#else
  FlushDenormals() {}
#endif
};

}  // namespace

// plain.py has the same.
struct Field {
  int32_t kind, columns;
  const int32_t* column;  // where the cells of its columns are in a row; several are joined
  TextList missing;       // count as an empty cell
  int64_t own;            // the id of a slot without a value, with the value 1; 0: the value is 0, too
  int64_t ranges;         // local id l has the id l + shift[r] of the last range with start[r] <= l
  const int64_t *start, *shift;
  // Boundaries of buckets, buckets of a hash, declared ids, rows of unknown values, or ids that are the field's.
  int64_t size;
  const double* boundaries;  // ascending
  int64_t smalls;            // of buckets, how many whole numbers from 0 on have theirs in `small`
  const int32_t* small;
  double mean, std, fill;    // of a value; fill is the number of a missing one
  int64_t has_fill;
  uint64_t key[2];           // of a keyed hash
  TextList entries;          // of a vocabulary; unknown values have the ids before them
  int64_t places;            // a power of two
  const int32_t* place;      // where afm_ctr_index_texts has put them
  int64_t slot, slots;       // the first of its slots, and how many they are
  const char* separator;     // of the values in a cell, each of which has a slot
  int64_t separator_size;    // 0: the cell is one value
  int64_t last, mean_of_values;  // whether the last ones are kept, and each of n has the value 1/n
  int64_t multi;             // its place among the fields of several values
  int64_t form, part;        // of a time
  const char* layout;
  int64_t layout_size;
  int64_t first;             // of the ids in libfm text that are the field's
};

namespace {

bool is_one_of(std::string_view text, const TextList& texts) {
  for (int64_t n = 0; n < texts.count; n++)
    if (text == texts[n]) return true;
  return false;
}

struct Cells {
  const char* text;
  const int32_t *start, *end;
  int64_t width;

  std::string_view One(const Field& field, int64_t row, int32_t column) const {
    const int64_t at = row * width + column;
    const std::string_view cell(text + start[at], end[at] - start[at]);
    return is_one_of(cell, field.missing) ? std::string_view() : cell;
  }

  // Of several columns their texts with the separator of crosses between them, empty where one is.
  std::string_view Of(const Field& field, int64_t row, std::string* joined) const {
    if (field.columns == 1) return One(field, row, field.column[0]);
    joined->clear();
    for (int32_t n = 0; n < field.columns; n++) {
      const std::string_view cell = One(field, row, field.column[n]);
      if (cell.empty()) return {};
      if (n) *joined += '\x1f';
      joined->append(cell);
    }
    return *joined;
  }
};

struct Slot {
  bool present = false, bad = false;
  int64_t local = 0;
  float value = 1;
};

// Of 1 to 8 digits and nothing else the number, below 10^8; else -1. 8 bytes before the cell's end must be readable.
int64_t few_digits(std::string_view cell) {
  static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the first of eight bytes is the lowest");
  if (cell.empty() || cell.size() > 8) return -1;
  uint64_t eight;
  memcpy(&eight, cell.data() + cell.size() - 8, 8);
  const int other = 8 * (8 - cell.size());  // bits of what is before the cell: they become zeros
  eight = (eight ^ 0x3030303030303030) >> other << other;
  if ((eight | (eight + 0x0606060606060606)) & 0xF0F0F0F0F0F0F0F0) return -1;
  // Neighbours are joined, in all pairs at once: ones to tens, these to thousands and so on.
  eight = (eight * 10 + (eight >> 8)) & 0x00FF00FF00FF00FF;
  eight = (eight * 100 + (eight >> 16)) & 0x0000FFFF0000FFFF;
  return static_cast<uint32_t>(eight * 10000 + (eight >> 32));
}

// At most 18 digits, and below the size.
bool declared_id(std::string_view cell, int64_t size, int64_t* id) {
  *id = 0;
  for (const char c : cell) {
    if (!is_digit(c)) return false;
    *id = 10 * *id + (c - '0');
  }
  return *id < size;
}

// The entry of a vocabulary, from 0; -1: it has none such. `print` is the fingerprint of the text.
int64_t entry(const TextList& entries, int64_t places, const int32_t* place, std::string_view text, uint64_t print) {
  for (uint64_t at = print;; at++) {
    const int64_t found = place[at & (places - 1)] - int64_t{1};
    if (found < 0 || entries[found] == text) return found;
  }
}

// `whole`: what few_digits says.
template <Kind kind>
Slot encoded(const Field& field, std::string_view cell, int64_t whole) {
  Slot slot;
  if (kind == kHash || kind == kKeyedHash || kind == kVocabulary) {
    slot.present = !cell.empty();
    if (!slot.present) return slot;
    const uint64_t print = kind == kKeyedHash ? siphash(field.key, cell) : Fingerprint::Of(cell);
    const int64_t known = kind == kVocabulary ? entry(field.entries, field.places, field.place, cell, print) : -1;
    slot.local = known < 0 ? print % static_cast<uint64_t>(field.size) : field.size + known;
    return slot;
  }
  if (whole < 0) cell = stripped(cell);
  if (kind == kIds) {
    slot.present = !cell.empty() && cell.size() <= 18 && declared_id(cell, field.size, &slot.local);
    slot.bad = !cell.empty() && !slot.present;
    return slot;
  }
  if (kind == kBuckets && whole >= 0 && whole < field.smalls) {
    slot.present = true;
    slot.local = field.small[whole];
    return slot;
  }
  if (kind == kTime) {
    int64_t minutes;
    slot.present = parse_time(cell, field.form, {field.layout, static_cast<size_t>(field.layout_size)}, &minutes);
    slot.bad = !cell.empty() && !slot.present;
    if (slot.present) slot.local = part_of(field.part, minutes);
    return slot;
  }
  double number = whole;
  slot.present = whole >= 0 ||
                 (parse_number(cell.data(), cell.data() + cell.size(), &number) && std::isfinite(number));
  if (kind == kBuckets) {
    slot.bad = !cell.empty() && !slot.present;
    if (slot.present)
      slot.local = std::upper_bound(field.boundaries, field.boundaries + field.size, number) - field.boundaries;
    return slot;
  }
  const auto scaled = [&](double x) {
    const auto after = [&](double y) { return static_cast<float>((y - field.mean) / field.std); };
    if (kind == kValue) return after(x);
    const double y = x > 0 ? std::log1p(x) : x < 0 ? -std::log1p(-x) : 0, more = std::abs(y) * kLogarithmsDiffer;
    // Each step keeps the order, so TensorFlow's value lies between these two.
    const float least = after(y - more), most = after(y + more);
    return memcmp(&least, &most, sizeof least) ? std::numeric_limits<float>::quiet_NaN() : least;
  };
  slot.value = scaled(number);
  if (kind == kLogarithm && slot.present && std::isnan(slot.value)) return slot;
  slot.present = slot.present && std::isfinite(slot.value);
  slot.bad = !cell.empty() && !slot.present;
  if (!slot.present) slot.value = scaled(field.fill);
  slot.present = slot.present || field.has_fill;
  return slot;
}

struct Encoded {
  int64_t* ids;    // [rows, slots]
  float* values;   // [rows, slots]
  bool* bad;       // [rows, fields]
  int32_t* cut;    // [rows, fields of several values]: how many of a cell's have no slot
  int64_t slots, fields, multis;

  void Put(const Field& field, int64_t place, const Slot& slot, int64_t own) const {
    int64_t range = 0;
    while (range + 1 < field.ranges && slot.local >= field.start[range + 1]) range++;
    values[place] = slot.present ? slot.value : own > 0;
    ids[place] = slot.present ? slot.local + field.shift[range] : own;
  }
};

struct Scratch {
  std::string joined;
  std::vector<std::string_view> pieces;
  std::vector<Slot> slots;
};

// The values in a cell that are not empty.
void split(const Field& field, std::string_view cell, bool strip, std::vector<std::string_view>* pieces) {
  const std::string_view separator(field.separator, field.separator_size);
  pieces->clear();
  for (size_t at = 0; at <= cell.size();) {
    const size_t end = std::min(cell.find(separator, at), cell.size());
    std::string_view piece = cell.substr(at, end - at);
    const bool missing = is_one_of(piece, field.missing);
    if (strip) piece = stripped(piece);
    if (!missing && !piece.empty()) pieces->push_back(piece);
    at = end + separator.size();
  }
}

// A cell of several values; one that is bad makes all of them missing.
template <Kind kind>
void encode_several(const Field& field, std::string_view cell, int64_t row, Scratch* scratch, const Encoded& to,
                    bool* bad) {
  std::vector<std::string_view>& pieces = scratch->pieces;
  split(field, cell, kind == kIds, &pieces);
  const int64_t count = pieces.size(), kept = std::min(count, field.slots), first = field.last ? count - kept : 0;
  scratch->slots.assign(field.slots, Slot());
  for (int64_t n = 0; n < kept; n++) {
    Slot& slot = scratch->slots[n] = encoded<kind>(field, pieces[first + n], -1);
    if (field.mean_of_values) slot.value = 1.0f / kept;
    *bad |= slot.bad;
  }
  for (int64_t n = 0; n < field.slots; n++) {
    Slot& slot = scratch->slots[n];
    slot.present &= !*bad;
    to.Put(field, row * to.slots + field.slot + n, slot, n ? 0 : field.own);
  }
  to.cut[row * to.multis + field.multi] = count - kept;
}

// A field, which is the one `at`, in the rows [begin, stop).
template <Kind kind>
void encode(const Field& field, const Cells& cells, int64_t begin, int64_t stop, Scratch* scratch, int64_t at,
            const Encoded& to) {
  constexpr bool is_word = kind == kHash || kind == kKeyedHash || kind == kVocabulary;
  for (int64_t row = begin; row < stop; row++) {
    const std::string_view cell = cells.Of(field, row, &scratch->joined);
    bool& bad = to.bad[row * to.fields + at];
    bad = false;
    if ((is_word || kind == kIds) && field.separator_size) {
      encode_several<kind>(field, cell, row, scratch, to, &bad);
      continue;
    }
    const bool readable = !is_word && kind != kTime && cell.data() + cell.size() >= cells.text + 8;
    const Slot slot = encoded<kind>(field, cell, readable ? few_digits(cell) : -1);
    bad = slot.bad;
    to.Put(field, row * to.slots + field.slot, slot, field.own);
  }
}

// An entry `id:number`.
bool parse_entry(std::string_view text, int64_t* id, double* number) {
  Scan scan(text);
  return scan.Digits(1, 18, id) && scan.Take(":") &&
         parse_number(scan.rest().data(), scan.rest().data() + scan.rest().size(), number);
}

// Fields of libfm text, all of a row's at once. Too many entries make a field bad, and so does a number beyond float32;
// what is no entry of any field makes the first one bad, which keeps its own.
class LibfmFields {
 public:
  LibfmFields(const Field* fields, int64_t count) : fields_(fields), taken_(count) {
    for (int64_t f = 0; f < count; f++)
      if (fields[f].kind == kLibfm) by_id_.push_back(f);
    std::sort(by_id_.begin(), by_id_.end(), [&](int64_t a, int64_t b) { return fields[a].first < fields[b].first; });
  }

  void Encode(const Cells& cells, int64_t row, const Encoded& to) {
    if (by_id_.empty()) return;
    bool* const bad = to.bad + row * to.fields;
    for (const int64_t f : by_id_) bad[f] = false, taken_[f] = 0;
    bool stray = false;
    std::string_view text = cells.One(fields_[by_id_[0]], row, fields_[by_id_[0]].column[0]);
    while (!(text = stripped(text)).empty()) {
      const std::string_view entry = text.substr(0, std::find_if(text.begin(), text.end(), is_space) - text.begin());
      text.remove_prefix(entry.size());
      int64_t id;
      double number;
      const int64_t f = parse_entry(entry, &id, &number) ? Owner(id) : -1;
      if (f < 0) {
        stray = true;
        continue;
      }
      Slot slot{true, false, id - fields_[f].first, static_cast<float>(number)};
      if (!std::isfinite(slot.value)) {
        bad[f] = true;
      } else if (number != 0 && taken_[f]++ < fields_[f].slots) {
        to.Put(fields_[f], row * to.slots + fields_[f].slot + taken_[f] - 1, slot, 0);
      }
    }
    for (const int64_t f : by_id_) {
      bad[f] |= taken_[f] > fields_[f].slots;
      for (int64_t n = bad[f] ? 0 : taken_[f]; n < fields_[f].slots; n++)
        to.Put(fields_[f], row * to.slots + fields_[f].slot + n, Slot(), n ? 0 : fields_[f].own);
    }
    bad[*std::min_element(by_id_.begin(), by_id_.end())] |= stray;
  }

 private:
  // The field that an id belongs to; -1: none.
  int64_t Owner(int64_t id) const {
    const auto after = std::upper_bound(by_id_.begin(), by_id_.end(), id,
                                        [&](int64_t value, int64_t f) { return value < fields_[f].first; });
    if (after == by_id_.begin()) return -1;
    const int64_t f = after[-1];
    return id - fields_[f].first < fields_[f].size ? f : -1;
  }

  const Field* const fields_;
  std::vector<int64_t> by_id_, taken_;
};

}  // namespace
}  // namespace afm_ctr

// Rows of cells in a text, starts and ends [rows, width], to what `Encoded` says; the value of a logarithm is nan where
// TensorFlow's last bit cannot be told. False: a cell is outside the text.
extern "C" bool afm_ctr_encode_rows(const afm_ctr::Field* fields, int64_t count, int64_t slots, int64_t multis,
                                    const char* text, int64_t size, const int32_t* starts, const int32_t* ends,
                                    int64_t rows, int64_t width, int64_t* ids, float* values, bool* bad,
                                    int32_t* cut) {
  using namespace afm_ctr;  // NOLINT
  bool outside = false;
  for (int64_t i = 0; i < rows * width; i++) outside |= (starts[i] < 0) | (starts[i] > ends[i]) | (ends[i] > size);
  if (outside) return false;
  const FlushDenormals flush;
  const Cells cells{text, starts, ends, width};
  const Encoded to{ids, values, bad, cut, slots, count, multis};
  constexpr decltype(&encode<kHash>) kinds[] = {encode<kBuckets>,   encode<kValue>,      encode<kLogarithm>,
                                                encode<kHash>,      encode<kKeyedHash>, encode<kVocabulary>,
                                                encode<kIds>,       encode<kTime>};
  Scratch scratch;
  LibfmFields libfm(fields, count);
  for (int64_t begin = 0; begin < rows; begin += kBlock) {
    const int64_t stop = std::min(rows, begin + kBlock);
    for (int64_t f = 0; f < count; f++)
      if (fields[f].kind != kLibfm) kinds[fields[f].kind](fields[f], cells, begin, stop, &scratch, f, to);
    for (int64_t row = begin; row < stop; row++) libfm.Encode(cells, row, to);
  }
  return true;
}

// Puts distinct texts where they are found by their fingerprints: `place`, of zeros, gets the number of each, from 1.
// It has a power of two of places, more than there are texts.
extern "C" void afm_ctr_index_texts(const char* text, const int64_t* ends, int64_t count, int64_t places,
                                    int32_t* place) {
  using namespace afm_ctr;  // NOLINT
  const TextList texts{text, ends, count};
  for (int64_t n = 0; n < count; n++) {
    uint64_t at = Fingerprint::Of(texts[n]);
    while (place[at & (places - 1)]) at++;
    place[at & (places - 1)] = n + 1;
  }
}

// Fingerprint64 of texts.
extern "C" void afm_ctr_fingerprints(const char* text, const int64_t* ends, int64_t count, uint64_t* prints) {
  const afm_ctr::TextList texts{text, ends, count};
  for (int64_t n = 0; n < count; n++) prints[n] = afm_ctr::Fingerprint::Of(texts[n]);
}

// The numbers of texts, nan where there is none, and which texts are neither a finite number nor empty.
extern "C" void afm_ctr_parse_numbers(const char* text, const int64_t* ends, int64_t count, double* values, bool* bad) {
  const afm_ctr::TextList texts{text, ends, count};
  for (int64_t n = 0; n < count; n++) {
    const std::string_view cell = afm_ctr::stripped(texts[n]);
    const bool fine = afm_ctr::parse_number(cell.data(), cell.data() + cell.size(), &values[n]) &&
                      std::isfinite(values[n]);
    if (!fine) values[n] = std::numeric_limits<double>::quiet_NaN();
    bad[n] = !fine && !cell.empty();
  }
}

// Which texts are neither a time of a form nor empty.
extern "C" void afm_ctr_bad_times(const char* text, const int64_t* ends, int64_t count, int64_t form,
                                  const char* layout, int64_t layout_size, bool* bad) {
  const afm_ctr::TextList texts{text, ends, count};
  int64_t minutes;
  for (int64_t n = 0; n < count; n++) {
    const std::string_view cell = afm_ctr::stripped(texts[n]);
    bad[n] = !cell.empty() &&
             !afm_ctr::parse_time(cell, form, {layout, static_cast<size_t>(layout_size)}, &minutes);
  }
}

// Lines, with line ends between them, to cells: starts and ends [rows, width], and how many cells each line has; a line
// with another number of cells gets empty ones. False: there are more or fewer lines.
extern "C" bool afm_ctr_cut_lines(const char* text, int64_t size, char delimiter, int64_t rows, int64_t width,
                                  int32_t* starts, int32_t* ends, int64_t* counts) {
  int64_t row = 0, cell = 0, begin = 0;
  const auto take = [&](int64_t at) {  // the place of a delimiter, of a line end, or behind the text
    if (cell < width) {
      starts[row * width + cell] = begin;
      ends[row * width + cell] = at;
    }
    cell++;
    begin = at + 1;
    if (at < size && text[at] == delimiter) return true;
    counts[row] = cell;
    if (cell != width) {
      std::fill_n(starts + row * width, width, 0);
      std::fill_n(ends + row * width, width, 0);
    }
    cell = 0;
    return ++row < rows;
  };
  if (!rows) return false;
  int64_t at = 0;
#ifdef __SSE2__
  const __m128i mark = _mm_set1_epi8(delimiter), line_end = _mm_set1_epi8('\n');
  for (; at + 16 <= size; at += 16) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(text + at));
    unsigned found = _mm_movemask_epi8(_mm_or_si128(_mm_cmpeq_epi8(bytes, mark), _mm_cmpeq_epi8(bytes, line_end)));
    for (; found; found &= found - 1)
      if (!take(at + __builtin_ctz(found))) return false;
  }
#endif
  for (; at < size; at++)
    if ((text[at] == delimiter || text[at] == '\n') && !take(at)) return false;
  return !take(size) && row == rows;
}
