// n texts in one, one after the other, as Python hands them over.
#ifndef AFM_CTR_NATIVE_TEXTS_H_
#define AFM_CTR_NATIVE_TEXTS_H_

#include <cstdint>
#include <string_view>

namespace afm_ctr {

struct TextList {
  const char* text;
  const int64_t* ends;
  int64_t count;

  std::string_view operator[](int64_t at) const {
    const int64_t begin = at ? ends[at - 1] : 0;
    return {text + begin, static_cast<size_t>(ends[at] - begin)};
  }
};

inline bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

// Without the white space around it.
inline std::string_view stripped(std::string_view text) {
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
}

}  // namespace afm_ctr

#endif  // AFM_CTR_NATIVE_TEXTS_H_
