// Cells in JSON Lines: where each of some keys has its value, in lines that are plain. No TensorFlow here.
//
// Plain is an object whose values are, for the keys asked for, texts, numbers, true, false, null, or lists of these.
// What a cell does not hold byte for byte (escapes, floats that Python writes otherwise, lists) is written behind the
// text. Python reads the other lines (afm_ctr/rawlog/jsonl.py), and says what is wrong with those that are no objects;
// no message is made here.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "number.h"
#include "texts.h"

namespace afm_ctr {
namespace {

constexpr int kDeepest = 64;  // objects and lists in one another
constexpr int64_t kExact = 15;  // digits of any decimal that its double gives back

// A code point that is no surrogate, in UTF-8.
void put_utf8(uint32_t code, std::string* to) {
  if (code < 0x80) {
    *to += static_cast<char>(code);
    return;
  }
  const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
  constexpr uint8_t kFirst[] = {0, 0xC0, 0xE0, 0xF0};
  *to += static_cast<char>(kFirst[more] | code >> 6 * more);
  for (int n = more - 1; n >= 0; n--) *to += static_cast<char>(0x80 | (code >> 6 * n & 0x3F));
}

// A finite double as Python's repr has it: the shortest digits that give it back, with an exponent below 1e-4 and
// from 1e16 on.
void put_float(double value, std::string* to) {
  char text[32];
  const char* const end = std::to_chars(text, text + sizeof text, value, std::chars_format::scientific).ptr;
  const char* at = text;
  if (*at == '-') *to += *at++;
  const char* const mark = std::find(at, end, 'e');
  int exponent = 0;
  std::from_chars(mark[1] == '+' ? mark + 2 : mark + 1, end, exponent);
  if (exponent < -4 || exponent >= 16) {  // both write at least two digits of the exponent
    to->append(at, end);
    return;
  }
  std::string digits(1, *at);
  if (mark - at > 2) digits.append(at + 2, mark);
  const int count = digits.size();
  if (exponent < 0) {
    to->append("0.").append(-exponent - 1, '0').append(digits);
  } else if (count <= exponent + 1) {
    to->append(digits).append(exponent + 1 - count, '0').append(".0");
  } else {
    to->append(digits, 0, exponent + 1).append(1, '.').append(digits, exponent + 1);
  }
}

// A cell: bytes of the line, or of what is written behind the text.
struct Found {
  bool written;
  size_t begin, size;  // in the line, or in what is written
};

// Of one line. Every method leaves the place behind what it has read, or returns false: the line is not plain.
class Line {
 public:
  Line(const char* at, const char* end, std::string* more) : first_(at), at_(at), end_(end), more_(more) {}

  void Space() {
    while (at_ != end_ && (*at_ == ' ' || *at_ == '\t' || *at_ == '\r')) at_++;
  }

  bool Take(char c) { return at_ != end_ && *at_ == c && (at_++, true); }

  bool AtEnd() const { return at_ == end_; }

  // A string without escapes; strings may hold control characters.
  bool Plain(std::string_view* text) {
    if (!Take('"')) return false;
    const char* const begin = at_;
    at_ = Ordinary(at_);
    *text = {begin, static_cast<size_t>(at_ - begin)};
    return Take('"');
  }

  // A value as a cell. Of a list the cells with the first separator between them, if none has a separator in it.
  bool Cell(const std::vector<std::string>& separators, Found* cell) {
    if (at_ == end_ || *at_ != '[' || separators.empty()) return One(cell);
    at_++;
    const size_t begin = more_->size();
    Space();
    if (!Take(']')) {
      bool first = true;
      do {
        if (!first) more_->append(separators[0]);
        first = false;
        const size_t element = more_->size();
        Found one;
        Space();
        if (!One(&one)) return false;
        if (!one.written) more_->append(first_ + one.begin, one.size);
        for (const std::string& separator : separators)
          if (std::string_view(*more_).substr(element).find(separator) != std::string_view::npos) return false;
        Space();
      } while (Take(','));
      if (!Take(']')) return false;
    }
    *cell = {true, begin, more_->size() - begin};
    return true;
  }

  // Any value that nobody asks for.
  bool Skip(int depth) {
    if (at_ == end_ || depth > kDeepest) return false;
    if (*at_ == '"') return String(nullptr);
    if (*at_ == '{' || *at_ == '[') {
      const bool object = *at_++ == '{';
      const char close = object ? '}' : ']';
      Space();
      if (Take(close)) return true;
      do {
        Space();
        if (object) {
          if (!String(nullptr)) return false;
          Space();
          if (!Take(':')) return false;
          Space();
        }
        if (!Skip(depth + 1)) return false;
        Space();
      } while (Take(','));
      return Take(close);
    }
    bool whole, shortest;
    return IsNumber() ? Number(&whole, &shortest) : Word();
  }

 private:
  // What Python reads besides JSON's own words: NaN, Infinity, -Infinity.
  bool Word() {
    for (const std::string_view word : {"null", "true", "false", "NaN", "Infinity", "-Infinity"})
      if (static_cast<size_t>(end_ - at_) >= word.size() && memcmp(at_, word.data(), word.size()) == 0) {
        at_ += word.size();
        return true;
      }
    return false;
  }

  // The place of the next quote or escape.
  const char* Ordinary(const char* at) const {
    while (at != end_ && *at != '"' && *at != '\\') at++;
    return at;
  }

  bool IsNumber() const {
    return is_digit(*at_) || (*at_ == '-' && at_ + 1 != end_ && is_digit(at_[1]));
  }

  // A value but for lists and objects.
  bool One(Found* cell) {
    if (at_ == end_) return false;
    const char* begin = at_;
    const size_t written = more_->size();
    if (*at_ == '"') {
      std::string_view text;
      if (Plain(&text)) {
        *cell = {false, static_cast<size_t>(text.data() - first_), text.size()};
        return true;
      }
      at_ = begin;
      if (!String(more_)) return false;
    } else if (IsNumber()) {
      bool whole, shortest;
      if (!Number(&whole, &shortest)) return false;
      if (whole || shortest) {
        if (*begin == '-' && begin[1] == '0' && whole) begin++;  // -0 is 0
        *cell = {false, static_cast<size_t>(begin - first_), static_cast<size_t>(at_ - begin)};
        return true;
      }
      double value;
      if (!parse_number(begin, at_, &value) || !std::isfinite(value)) return false;
      // What is below the normal numbers is 0 to some, and is left to Python.
      const bool zero = std::string_view(begin, at_ - begin).find_first_of("123456789") == std::string_view::npos;
      if (!zero && std::abs(value) < 1e-300) return false;
      put_float(value, more_);
    } else {
      if (!Word()) return false;
      const bool boolean = *begin == 't' || *begin == 'f';
      if (boolean) {
        *cell = {false, static_cast<size_t>(begin - first_), static_cast<size_t>(at_ - begin)};
        return true;
      }
      if (*begin == 'I' || *begin == '-') more_->append(*begin == '-' ? "-inf" : "inf");
    }
    *cell = {true, written, more_->size() - written};
    return true;
  }

  bool Hex(uint32_t* code) {
    *code = 0;
    for (int n = 0; n < 4; n++, at_++) {
      if (at_ == end_) return false;
      const char low = *at_ | 32;
      if (!is_digit(*at_) && !(low >= 'a' && low <= 'f')) return false;
      *code = *code << 4 | (is_digit(*at_) ? *at_ - '0' : low - 'a' + 10);
    }
    return true;
  }

  // A string; what it says is written, if that is asked for, and then half a surrogate pair is not plain.
  bool String(std::string* to) {
    if (!Take('"')) return false;
    while (true) {
      const char* const begin = at_;
      at_ = Ordinary(at_);
      if (to) to->append(begin, at_);
      if (at_ == end_) return false;
      if (*at_++ == '"') return true;
      if (at_ == end_) return false;
      static constexpr std::string_view kNames = "\"\\/bfnrt", kMeant = "\"\\/\b\f\n\r\t";
      if (const size_t which = kNames.find(*at_); which != std::string_view::npos) {
        if (to) *to += kMeant[which];
        at_++;
        continue;
      }
      uint32_t code, low;
      if (*at_++ != 'u' || !Hex(&code)) return false;
      if (!to) continue;
      if (code >= 0xD800 && code < 0xE000) {
        if (code >= 0xDC00 || end_ - at_ < 2 || at_[0] != '\\' || at_[1] != 'u') return false;
        at_ += 2;
        if (!Hex(&low) || low < 0xDC00 || low >= 0xE000) return false;
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
      }
      put_utf8(code, to);
    }
  }

  bool Digits(int64_t* count) {
    const char* const begin = at_;
    while (at_ != end_ && is_digit(*at_)) at_++;
    *count = at_ - begin;
    return *count > 0;
  }

  // whole: a whole number, which is its digits. shortest: a float as Python writes it, by digits that no other float
  // has as well: neither -0.0 nor one with an exponent, or that Python would write with one.
  bool Number(bool* whole, bool* shortest) {
    const bool negative = Take('-');
    const char* const begin = at_;
    int64_t before, behind = 0, exponent;
    if (!Digits(&before) || (*begin == '0' && before > 1)) return false;
    *whole = true;
    *shortest = false;
    if (Take('.')) {
      const char* const first = at_;
      if (!Digits(&behind)) return false;
      int64_t zeros = 0;
      while (zeros < behind && first[zeros] == '0') zeros++;
      const bool small = *begin == '0';
      *whole = false;
      *shortest = before + behind <= kExact && (at_[-1] != '0' || (behind == 1 && !(small && negative))) &&
                  (!small || zeros <= 3);
    }
    if (at_ != end_ && (*at_ == 'e' || *at_ == 'E')) {
      at_++;
      if (at_ != end_ && (*at_ == '+' || *at_ == '-')) at_++;
      if (!Digits(&exponent)) return false;
      *whole = *shortest = false;
    }
    return true;
  }

  const char *const first_, *at_, *const end_;
  std::string* const more_;
};

struct Key {
  std::string text;
  std::vector<std::string> separators;  // of lists; none: a list is no cell
};

// Which of the keys a text is. Keys mostly come in the order of the line before, some left out.
class Order {
 public:
  explicit Order(const std::vector<Key>& keys) : keys_(keys) {}

  int64_t Find(std::string_view text) {
    for (size_t n = 0; n < seen_.size(); n++) {
      const size_t at = next_ + n < seen_.size() ? next_ + n : next_ + n - seen_.size();
      if (seen_[at].first != text) continue;
      next_ = at + 1;
      return seen_[at].second;
    }
    int64_t which = -1;
    for (size_t i = 0; which < 0 && i < keys_.size(); i++)
      if (keys_[i].text == text) which = i;
    if (seen_.size() < kMostSeen) seen_.insert(seen_.begin() + next_++, {text, which});
    return which;
  }

  void Begin() { next_ = 0; }

 private:
  static constexpr size_t kMostSeen = 512;
  const std::vector<Key>& keys_;
  std::vector<std::pair<std::string_view, int64_t>> seen_;  // with -1: nobody asks for it
  size_t next_ = 0;
};

struct Place {
  int64_t line, size;  // first byte of the line, bytes of the whole text
};

// Of keys that an object has twice the last counts.
bool read(Line line, Place place, const std::vector<Key>& keys, Order* order, int32_t* start, int32_t* end) {
  order->Begin();
  line.Space();
  if (!line.Take('{')) return false;
  line.Space();
  if (!line.Take('}')) {
    do {
      std::string_view key;
      Found cell;
      line.Space();
      if (!line.Plain(&key)) return false;
      line.Space();
      if (!line.Take(':')) return false;
      line.Space();
      const int64_t which = order->Find(key);
      if (which < 0) {
        if (!line.Skip(1)) return false;
      } else {
        if (!line.Cell(keys[which].separators, &cell)) return false;
        const int64_t begin = cell.begin + (cell.written ? place.size : place.line);
        start[which] = cell.size ? begin : 0;
        end[which] = start[which] + cell.size;
      }
      line.Space();
    } while (line.Take(','));
    if (!line.Take('}')) return false;
  }
  line.Space();
  return line.AtEnd();
}

}  // namespace
}  // namespace afm_ctr

// Of each line whether it is plain, and where the values of the keys are: [rows, keys], nowhere (0, 0) where it has
// none. Places from the text's length on are in `more`, whose size is returned; it is to be given back.
extern "C" int64_t afm_ctr_scan_json(const char* text, int64_t size, int64_t rows, const char* key_text,
                                     const int64_t* key_ends, int64_t keys, const char* separator_text,
                                     const int64_t* separator_ends, const int64_t* counts, int32_t* start,
                                     int32_t* end, bool* plain, char** more) {
  using namespace afm_ctr;  // NOLINT
  std::vector<Key> wanted;
  const TextList names{key_text, key_ends, keys};
  TextList separators{separator_text, separator_ends, 0};
  for (int64_t key = 0; key < keys; key++) {
    wanted.push_back({std::string(names[key]), {}});
    for (const int64_t stop = separators.count + counts[key]; separators.count < stop; separators.count++)
      wanted.back().separators.emplace_back(separators[separators.count]);
  }
  std::fill_n(start, rows * keys, 0);
  std::fill_n(end, rows * keys, 0);
  Order order(wanted);
  std::string written;
  const char *at = text, *const last = text + size;
  for (int64_t row = 0; row < rows; row++) {
    const void* const found = at <= last ? memchr(at, '\n', last - at) : nullptr;
    const char* const line_end = found ? static_cast<const char*>(found) : last;
    const size_t before = written.size();
    plain[row] = at <= last &&
                 read(Line(at, line_end, &written), {at - text, size}, wanted, &order, start + row * keys,
                      end + row * keys) &&
                 size + written.size() <= std::numeric_limits<int32_t>::max();
    if (!plain[row]) {
      written.resize(before);
      std::fill_n(start + row * keys, keys, 0);
      std::fill_n(end + row * keys, keys, 0);
    }
    at = line_end + 1;
  }
  *more = static_cast<char*>(malloc(written.size() + 1));
  if (!*more) return -1;
  std::copy(written.begin(), written.end(), *more);
  return written.size();
}

extern "C" void afm_ctr_give_back(char* more) { free(more); }
