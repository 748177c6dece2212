// Decimal text to the double nearest to it.
#ifndef AFM_CTR_NATIVE_NUMBER_H_
#define AFM_CTR_NATIVE_NUMBER_H_

#include <charconv>
#include <cstdint>
#include <limits>
#include <system_error>

namespace afm_ctr {

inline bool is_digit(char c) { return c >= '0' && c <= '9'; }

// Of [+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)? (afm_ctr/features/cell_ops.py): false where the text is
// anything else. What a double cannot hold becomes infinite, or 0.
inline bool parse_number(const char* at, const char* end, double* value) {
  const bool negative = at != end && *at == '-';
  if (at != end && (*at == '-' || *at == '+')) at++;
  const char* const begin = at;
  uint64_t digits = 0;                 // as far as 18 of them go
  int64_t count = 0, exponent = 0;     // significant digits; value = digits * 10^exponent
  const auto take = [&](bool fraction) {
    const char* const first = at;
    for (; at != end && is_digit(*at); at++) {
      if (count || *at != '0') count++;
      if (count <= 18) digits = 10 * digits + (*at - '0');
      exponent -= fraction;
    }
    return at != first;
  };
  bool any = take(false);
  if (at != end && *at == '.') {
    at++;
    any |= take(true);
  }
  if (!any) return false;
  if (at != end && (*at == 'e' || *at == 'E')) {
    at++;
    const bool down = at != end && *at == '-';
    if (at != end && (*at == '-' || *at == '+')) at++;
    const char* const first = at;
    int64_t given = 0;
    for (; at != end && is_digit(*at); at++) given = given < 1000000000 ? 10 * given + (*at - '0') : given;
    if (at == first) return false;
    exponent += down ? -given : given;
  }
  if (at != end) return false;
  static constexpr double kTens[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                     1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
  double found = 0;
  if (count <= 15 && exponent >= -22 && exponent <= 22) {
    // Both factors are exact, so their product is rounded once (Clinger, "How to read floating point numbers
    // accurately", 1990).
    found = exponent < 0 ? digits / kTens[-exponent] : digits * kTens[exponent];
  } else if (count) {
    if (std::from_chars(begin, end, found).ec == std::errc::result_out_of_range)
      found = count + exponent > 0 ? std::numeric_limits<double>::infinity() : 0;
  }
  *value = negative ? -found : found;
  return true;
}

}  // namespace afm_ctr

#endif  // AFM_CTR_NATIVE_NUMBER_H_
