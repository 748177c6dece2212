// The op that finds cells in JSON Lines: where each of some keys has its value, in lines that are plain.
//
// Plain is an object whose values are, for the keys asked for, what a cell holds byte for byte: whole numbers, floats
// as Python would write them, strings without escapes, true, false, null. Python reads the other lines
// (afm_ctr/rawlog/jsonl.py), and says what is wrong with those that are no objects; no message is made here.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "number.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace afm_ctr {
namespace {

using namespace tensorflow;  // NOLINT: the names of every op

constexpr int kDeepest = 64;  // objects and lists in one another
constexpr int64_t kExact = 15;  // digits of any decimal that its double gives back

// Of one line. Every method leaves the place behind what it has read, or returns false: the line is not plain.
class Line {
 public:
  Line(const char* at, const char* end) : at_(at), end_(end) {}

  void Space() {
    while (at_ != end_ && (*at_ == ' ' || *at_ == '\t' || *at_ == '\r')) at_++;
  }

  bool Take(char c) { return at_ != end_ && *at_ == c && (at_++, true); }

  bool AtEnd() const { return at_ == end_; }

  // A string without escapes; strings may hold control characters.
  bool Plain(std::string_view* text) {
    if (!Take('"')) return false;
    const char* const begin = at_;
    while (at_ != end_ && *at_ != '"' && *at_ != '\\') at_++;
    *text = {begin, static_cast<size_t>(at_ - begin)};
    return Take('"');
  }

  // A value that is a cell as it is written.
  bool Cell(std::string_view* cell) {
    if (at_ == end_) return false;
    if (*at_ == '"') return Plain(cell);
    if (*at_ == '-' || is_digit(*at_)) {
      const char* begin = at_;
      bool whole, shortest;
      if (!Number(&whole, &shortest) || !(whole || shortest)) return false;
      if (*begin == '-' && begin[1] == '0' && whole) begin++;  // -0 is 0
      *cell = {begin, static_cast<size_t>(at_ - begin)};
      return true;
    }
    const char* const begin = at_;
    if (!Word()) return false;
    *cell = *begin == 'n' ? std::string_view() : std::string_view(begin, at_ - begin);
    return true;
  }

  // Any value that nobody asks for.
  bool Skip(int depth) {
    if (at_ == end_ || depth > kDeepest) return false;
    if (*at_ == '"') return String();
    if (*at_ == '{' || *at_ == '[') {
      const bool object = *at_++ == '{';
      const char close = object ? '}' : ']';
      Space();
      if (Take(close)) return true;
      do {
        Space();
        if (object) {
          if (!String()) return false;
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
    return *at_ == '-' || is_digit(*at_) ? Number(&whole, &shortest) : Word();
  }

 private:
  bool Word() {
    for (const std::string_view word : {"null", "true", "false"})
      if (static_cast<size_t>(end_ - at_) >= word.size() && memcmp(at_, word.data(), word.size()) == 0) {
        at_ += word.size();
        return true;
      }
    return false;
  }

  bool String() {
    if (!Take('"')) return false;
    while (at_ != end_ && *at_ != '"') {
      if (*at_++ != '\\') continue;
      if (at_ == end_) return false;
      if (*at_ == 'u') {
        for (int n = 1; n <= 4; n++)
          if (end_ - at_ <= n || !(is_digit(at_[n]) || ((at_[n] | 32) >= 'a' && (at_[n] | 32) <= 'f'))) return false;
        at_ += 4;
      } else if (!memchr("\"\\/bfnrt", *at_, 8)) {
        return false;
      }
      at_++;
    }
    return Take('"');
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

  const char *at_, *const end_;
};

class ScanJsonOp : public OpKernel {
 public:
  explicit ScanJsonOp(OpKernelConstruction* construction) : OpKernel(construction) {
    OP_REQUIRES_OK(construction, construction->GetAttr("keys", &keys_));
    OP_REQUIRES_OK(construction, construction->GetAttr("rows", &rows_));
  }

  void Compute(OpKernelContext* context) override {
    OP_REQUIRES(context, context->input(0).dims() == 0, absl::InvalidArgumentError("json: text must be a scalar"));
    const tstring& text = context->input(0).scalar<tstring>()();
    OP_REQUIRES(context, text.size() <= std::numeric_limits<int32_t>::max(),
                absl::InvalidArgumentError("json: the text is too long"));
    const int64_t keys = keys_.size();
    Tensor *starts, *ends, *plain;
    OP_REQUIRES_OK(context, context->allocate_output(0, {rows_, keys}, &starts));
    OP_REQUIRES_OK(context, context->allocate_output(1, {rows_, keys}, &ends));
    OP_REQUIRES_OK(context, context->allocate_output(2, {rows_}, &plain));
    int32_t *const start = starts->flat<int32_t>().data(), *const end = ends->flat<int32_t>().data();
    std::fill_n(start, rows_ * keys, 0);
    std::fill_n(end, rows_ * keys, 0);
    std::vector<int64_t> order(1, -1);  // of the line before: the key at each place, -1 if nobody asks for it
    const char *at = text.data(), *const last = at + text.size();
    for (int64_t row = 0; row < rows_; row++) {
      const void* const found = at <= last ? memchr(at, '\n', last - at) : nullptr;
      const char* const line_end = found ? static_cast<const char*>(found) : last;
      const bool good = at <= last && Read(Line(at, line_end), text.data(), start + row * keys, end + row * keys, &order);
      plain->flat<bool>()(row) = good;
      if (!good) {
        std::fill_n(start + row * keys, keys, 0);
        std::fill_n(end + row * keys, keys, 0);
      }
      at = line_end + 1;
    }
  }

 private:
  // Of keys that an object has twice the last counts.
  bool Read(Line line, const char* text, int32_t* start, int32_t* end, std::vector<int64_t>* order) const {
    line.Space();
    if (!line.Take('{')) return false;
    line.Space();
    if (!line.Take('}')) {
      size_t place = 0;
      do {
        std::string_view key, cell;
        line.Space();
        if (!line.Plain(&key)) return false;
        line.Space();
        if (!line.Take(':')) return false;
        line.Space();
        if (place == order->size()) order->push_back(-1);
        int64_t& which = (*order)[place++];
        if (which < 0 || keys_[which] != key) which = Find(key);
        if (which < 0) {
          if (!line.Skip(1)) return false;
        } else {
          if (!line.Cell(&cell)) return false;
          start[which] = cell.empty() ? 0 : cell.data() - text;
          end[which] = start[which] + cell.size();
        }
        line.Space();
      } while (line.Take(','));
      if (!line.Take('}')) return false;
    }
    line.Space();
    return line.AtEnd();
  }

  int64_t Find(std::string_view key) const {
    for (size_t i = 0; i < keys_.size(); i++)
      if (keys_[i] == key) return i;
    return -1;
  }

  std::vector<std::string> keys_;
  int64_t rows_ = 0;
};

// Of each line whether it is plain, and where the values of the keys are: [rows, keys], nowhere (0, 0) where it has none.
REGISTER_OP("AfmCtrScanJson")
    .Input("text: string")
    .Attr("rows: int >= 0")
    .Attr("keys: list(string)")
    .Output("starts: int32")
    .Output("ends: int32")
    .Output("plain: bool")
    .SetShapeFn(shape_inference::UnknownShape);

REGISTER_KERNEL_BUILDER(Name("AfmCtrScanJson").Device(DEVICE_CPU), ScanJsonOp);

}  // namespace
}  // namespace afm_ctr
