// Texts of times to minutes, and these to the parts of a moment; see afm_ctr/features/times.py, which has the same.
#ifndef AFM_CTR_NATIVE_MOMENTS_H_
#define AFM_CTR_NATIVE_MOMENTS_H_

#include <cstdint>
#include <string_view>

#include "number.h"
#include "texts.h"

namespace afm_ctr {

// plain.py has the same names.
enum Form : int32_t { kLayout, kIso, kEpoch, kEpochMs, kClock };
enum Part : int32_t { kHour, kWeekday, kWeekend, kDay, kMonth };

constexpr int64_t kMinutesOfDay = 24 * 60;

inline int64_t floor_of(int64_t a, int64_t b) { return a / b - (a % b < 0); }
inline int64_t rest_of(int64_t a, int64_t b) { return a - floor_of(a, b) * b; }

// Reads a text from its beginning; what does not fit is not taken.
class Scan {
 public:
  explicit Scan(std::string_view text) : rest_(text) {}

  bool Done() const { return rest_.empty(); }

  bool Take(std::string_view one_of) {
    const bool fits = !rest_.empty() && one_of.find(rest_.front()) != one_of.npos;
    if (fits) rest_.remove_prefix(1);
    return fits;
  }

  // As many digits as there are, up to `most`.
  bool Digits(int least, int most, int64_t* number) {
    *number = 0;
    int count = 0;
    for (; count < most && !rest_.empty() && is_digit(rest_.front()); count++, rest_.remove_prefix(1))
      *number = 10 * *number + (rest_.front() - '0');
    return count >= least;
  }

  // A fraction of a second, which is not read.
  bool Fraction() {
    if (!Take(".,")) return true;
    const size_t before = rest_.size();
    while (!rest_.empty() && is_digit(rest_.front())) rest_.remove_prefix(1);
    return rest_.size() < before;
  }

  std::string_view rest() const { return rest_; }

 private:
  std::string_view rest_;
};

struct Moment {
  int64_t year = 2000, month = 1, day = 1, hour = 0, minute = 0, second = 0;

  // Minutes since 1970; false: the calendar has no such moment.
  // Source: Howard Hinnant, chrono-compatible low-level date algorithms (years begin in March, 400 of them an era).
  bool Minutes(int64_t* minutes) const {
    static constexpr int64_t kDays[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    if (year < 1 || month < 1 || month > 12 || day < 1 || hour > 23 || minute > 59 || second > 59) return false;
    const bool leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    if (day > kDays[month - 1] + (leap && month == 2)) return false;
    const int64_t from_march = year - (month <= 2), era = from_march / 400, of_era = from_march % 400,
                  of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1,
                  days = era * 146097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719468;
    *minutes = days * kMinutesOfDay + hour * 60 + minute;
    return true;
  }
};

inline bool iso_minutes(std::string_view text, int64_t* minutes) {
  Scan scan(text);
  Moment at;
  if (!(scan.Digits(4, 4, &at.year) && scan.Take("-") && scan.Digits(2, 2, &at.month) && scan.Take("-") &&
        scan.Digits(2, 2, &at.day)))
    return false;
  int64_t offset = 0;
  if (!scan.Done()) {
    if (!(scan.Take("T ") && scan.Digits(2, 2, &at.hour))) return false;
    if (scan.Take(":")) {
      if (!scan.Digits(2, 2, &at.minute)) return false;
      if (scan.Take(":") && !(scan.Digits(2, 2, &at.second) && scan.Fraction())) return false;
    }
    if (!scan.Done() && !scan.Take("Z")) {
      int64_t hours = 0, more = 0;
      const bool west = scan.Take("-");
      if (!(west || scan.Take("+")) || !scan.Digits(2, 2, &hours)) return false;
      if (!scan.Done() && (scan.Take(":"), !scan.Digits(2, 2, &more))) return false;
      if (hours > 23 || more > 59) return false;
      offset = west ? hours * 60 + more : -hours * 60 - more;
    }
  }
  if (!scan.Done() || !at.Minutes(minutes)) return false;
  *minutes += offset;
  return true;
}

inline bool clock_minutes(std::string_view text, int64_t* minutes) {
  Scan scan(text);
  int64_t hour, minute, second = 0;
  if (!(scan.Digits(1, 2, &hour) && scan.Take(":") && scan.Digits(2, 2, &minute))) return false;
  if (scan.Take(":") && !(scan.Digits(2, 2, &second) && scan.Fraction())) return false;
  if (minute > 59 || second > 59) return false;
  if (!scan.Done()) {
    scan.Take(" ");
    const bool late = scan.Take("Pp");
    if (!(late || scan.Take("Aa"))) return false;
    scan.Take(".");
    if (!scan.Take("Mm")) return false;
    scan.Take(".");
    if (hour < 1 || hour > 12) return false;
    hour = hour % 12 + 12 * late;
  }
  if (!scan.Done() || hour > 23) return false;
  *minutes = hour * 60 + minute;
  return true;
}

// Rounded down, -0.5 seconds are -1.
inline bool epoch_minutes(std::string_view text, int64_t units, int64_t* minutes) {
  Scan scan(text);
  const bool below = scan.Take("-");
  int64_t whole;
  if (!scan.Digits(1, 18, &whole)) return false;
  if (below) whole = -whole;
  if (scan.Take(".")) {
    const std::string_view fraction = scan.rest();
    if (fraction.find_first_not_of("0123456789") != fraction.npos) return false;
    whole -= below && fraction.find_first_not_of('0') != fraction.npos;
  } else if (!scan.Done()) {
    return false;
  }
  *minutes = floor_of(whole, units);
  return true;
}

// The layout has a byte for each of the text's: 1 year, 2 year of two digits, 3 month, 4 day, 5 hour, 6 minute, 7 second;
// all others stand for themselves.
inline bool layout_minutes(std::string_view text, std::string_view layout, int64_t* minutes) {
  if (text.size() != layout.size()) return false;
  Moment at;
  int64_t short_year = 0;
  int64_t* const places[] = {&at.year, &short_year, &at.month, &at.day, &at.hour, &at.minute, &at.second};
  char before = 0;
  for (size_t n = 0; n < text.size(); n++) {
    const char code = layout[n];
    if (code < 1 || code > 7) {
      if (text[n] != code) return false;
    } else {
      if (!is_digit(text[n])) return false;
      int64_t& number = *places[code - 1];
      number = (code == before ? 10 * number : 0) + (text[n] - '0');
      if (code == 2) at.year = short_year + (short_year < 69 ? 2000 : 1900);
    }
    before = code;
  }
  return at.Minutes(minutes);
}

// Minutes since 1970, or of a clock since midnight, of a text without white space around it; false: it has none.
inline bool parse_time(std::string_view text, int32_t form, std::string_view layout, int64_t* minutes) {
  switch (form) {
    case kIso: return iso_minutes(text, minutes);
    case kClock: return clock_minutes(text, minutes);
    case kLayout: return layout_minutes(text, layout, minutes);
    default: return epoch_minutes(text, form == kEpoch ? 60 : 60000, minutes);
  }
}

// The local id of a moment.
inline int64_t part_of(int32_t part, int64_t minutes) {
  if (part == kHour) return rest_of(minutes, kMinutesOfDay) / 60;
  const int64_t days = floor_of(minutes, kMinutesOfDay);
  if (part == kWeekday || part == kWeekend) {
    const int64_t weekday = rest_of(days + 3, 7);  // 1970 began on a Thursday
    return part == kWeekday ? weekday : weekday >= 5;
  }
  const int64_t of_era = rest_of(days + 719468, 146097),
                year = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365,
                of_year = of_era - (365 * year + year / 4 - year / 100), from_march = (5 * of_year + 2) / 153;
  return part == kMonth ? (from_march + 2) % 12 : of_year - (153 * from_march + 2) / 5;
}

}  // namespace afm_ctr

#endif  // AFM_CTR_NATIVE_MOMENTS_H_
