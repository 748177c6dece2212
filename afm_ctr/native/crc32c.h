// CRC-32C (Castagnoli), as TFRecord files use it.
#ifndef AFM_CTR_NATIVE_CRC32C_H_
#define AFM_CTR_NATIVE_CRC32C_H_

#include <cstddef>
#include <cstdint>

namespace afm_ctr {

constexpr int kTogether = 4;

struct Crc32c {
  uint32_t (*one)(const uint8_t* data, size_t size);
  // Of several messages: each CRC is a chain of steps that wait for one another, and the chains take turns.
  void (*several)(const uint8_t* const data[kTogether], const size_t size[kTogether], uint32_t crc[kTogether]);
};

// By the instruction of this machine, if it has one and that is wanted; else by tables.
Crc32c find_crc32c(bool portable);

// What a TFRecord stores: rotated, since the CRC of data that holds CRCs is weak.
inline uint32_t masked(uint32_t crc) { return (crc >> 15 | crc << 17) + 0xA282EAD8u; }

// Bytes of a TFRecord's frame: the length and its checksum before the record, the record's checksum behind it.
constexpr int64_t kHeader = 12, kFooter = 4;

}  // namespace afm_ctr

#endif  // AFM_CTR_NATIVE_CRC32C_H_
