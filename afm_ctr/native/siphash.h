// SipHash-2-4, by which keyed hashes are made.
#ifndef AFM_CTR_NATIVE_SIPHASH_H_
#define AFM_CTR_NATIVE_SIPHASH_H_

#include <cstdint>
#include <cstring>
#include <string_view>

namespace afm_ctr {

// Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012. The key as two little-endian words.
inline uint64_t siphash(const uint64_t key[2], std::string_view text) {
  uint64_t a = key[0] ^ 0x736F6D6570736575, b = key[1] ^ 0x646F72616E646F6D, c = key[0] ^ 0x6C7967656E657261,
           d = key[1] ^ 0x7465646279746573;
  const auto turned = [](uint64_t x, int bits) { return x << bits | x >> (64 - bits); };
  const auto rounds = [&](int count) {
    for (; count; count--) {
      a += b;
      c += d;
      b = turned(b, 13) ^ a;
      d = turned(d, 16) ^ c;
      a = turned(a, 32);
      c += b;
      a += d;
      b = turned(b, 17) ^ c;
      d = turned(d, 21) ^ a;
      c = turned(c, 32);
    }
  };
  const auto take = [&](uint64_t word) {
    d ^= word;
    rounds(2);
    a ^= word;
  };
  const char* at = text.data();
  size_t left = text.size();
  for (; left >= 8; left -= 8, at += 8) {
    uint64_t word;
    memcpy(&word, at, 8);
    take(word);
  }
  uint64_t last = 0;
  if (left) memcpy(&last, at, left);
  take(last | static_cast<uint64_t>(text.size()) << 56);
  c ^= 0xFF;
  rounds(4);
  return a ^ b ^ c ^ d;
}

}  // namespace afm_ctr

#endif  // AFM_CTR_NATIVE_SIPHASH_H_
