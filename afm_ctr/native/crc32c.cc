#include "crc32c.h"

#include <algorithm>
#include <array>
#include <cstring>
#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

namespace afm_ctr {
namespace {

// tables[n][b]: the CRC of byte b and n zeros behind it, so that eight bytes are eight look-ups that do not wait for
// each other ("slicing by 8": Kounavis and Berry, 2008).
using Tables = std::array<std::array<uint32_t, 256>, 8>;

Tables make_tables() {
  Tables tables{};
  for (uint32_t byte = 0; byte < 256; byte++) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0x82F63B78u : 0);
    tables[0][byte] = crc;
  }
  for (size_t n = 1; n < 8; n++)
    for (size_t byte = 0; byte < 256; byte++) {
      const uint32_t before = tables[n - 1][byte];
      tables[n][byte] = before >> 8 ^ tables[0][before & 255];
    }
  return tables;
}

uint32_t by_tables(const uint8_t* data, size_t size) {
  static const Tables tables = make_tables();
  uint32_t crc = ~0u;
  for (; size >= 8; size -= 8, data += 8) {
    uint32_t low, high;
    memcpy(&low, data, 4);
    memcpy(&high, data + 4, 4);
    low ^= crc;
    crc = 0;
    for (int n = 0; n < 4; n++) {
      crc ^= tables[7 - n][low >> 8 * n & 255];
      crc ^= tables[3 - n][high >> 8 * n & 255];
    }
  }
  for (; size; size--) crc = crc >> 8 ^ tables[0][(crc ^ *data++) & 255];
  return ~crc;
}

void several_by_tables(const uint8_t* const data[], const size_t size[], uint32_t crc[]) {
  for (int n = 0; n < kTogether; n++) crc[n] = by_tables(data[n], size[n]);
}

#if defined(__x86_64__)
// The CRC of more bytes behind those that gave this one.
__attribute__((target("sse4.2"))) uint32_t extend(uint64_t crc, const uint8_t* data, size_t size) {
  for (; size >= 8; size -= 8, data += 8) {
    uint64_t word;
    memcpy(&word, data, 8);
    crc = _mm_crc32_u64(crc, word);
  }
  for (; size; size--) crc = _mm_crc32_u8(static_cast<uint32_t>(crc), *data++);
  return ~static_cast<uint32_t>(crc);
}

uint32_t by_instruction(const uint8_t* data, size_t size) { return extend(~0u, data, size); }

__attribute__((target("sse4.2"))) void several_by_instruction(const uint8_t* const data[], const size_t size[],
                                                              uint32_t crc[]) {
  const size_t all = *std::min_element(size, size + kTogether) / 8 * 8;  // bytes that every message has
  uint64_t crcs[kTogether] = {~0u, ~0u, ~0u, ~0u};
  for (size_t at = 0; at < all; at += 8)
    for (int n = 0; n < kTogether; n++) {
      uint64_t word;
      memcpy(&word, data[n] + at, 8);
      crcs[n] = _mm_crc32_u64(crcs[n], word);
    }
  for (int n = 0; n < kTogether; n++) crc[n] = extend(crcs[n], data[n] + all, size[n] - all);
}
#endif

}  // namespace

Crc32c find_crc32c(bool portable) {
#if defined(__x86_64__)
  if (!portable && __builtin_cpu_supports("sse4.2")) return {by_instruction, several_by_instruction};
#endif
  return {by_tables, several_by_tables};
}

}  // namespace afm_ctr
