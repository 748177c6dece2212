// Fingerprint64 of FarmHash, by which values become hash buckets. Source: Pike, FarmHash, 2014 (farmhashna's Hash64).
#ifndef AFM_CTR_NATIVE_FINGERPRINT_H_
#define AFM_CTR_NATIVE_FINGERPRINT_H_

#include <cstdint>
#include <cstring>
#include <string_view>
#include <utility>

namespace afm_ctr {

class Fingerprint {
 public:
  static uint64_t Of(std::string_view text) {
    const char* const at = text.data();
    const uint64_t size = text.size();
    if (size > 64) return Long(at, size);
    const uint64_t by = k2 + 2 * size;
    if (size > 16) return Middle(at, size, by);
    if (size >= 8) {
      const uint64_t a = Eight(at) + k2, b = Eight(at + size - 8);
      return Mix(Turn(b, 37) * by + a, (Turn(a, 25) + b) * by, by);
    }
    if (size >= 4) return Mix(size + (uint64_t{Four(at)} << 3), Four(at + size - 4), by);
    if (!size) return k2;
    const auto byte = [&](uint64_t place) { return static_cast<uint32_t>(static_cast<uint8_t>(at[place])); };
    const uint32_t y = byte(0) + (byte(size >> 1) << 8), z = static_cast<uint32_t>(size) + (byte(size - 1) << 2);
    return Fold(y * k2 ^ z * k0) * k2;
  }

 private:
  using Pair = std::pair<uint64_t, uint64_t>;
  static constexpr uint64_t k0 = 0xc3a5c85c97cb3127, k1 = 0xb492b66fbe98f273, k2 = 0x9ae16a3b2f90404f;

  static uint64_t Eight(const char* at) {
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return value;
  }
  static uint32_t Four(const char* at) {
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return value;
  }
  static uint64_t Turn(uint64_t value, int by) { return value >> by | value << (64 - by); }
  static uint64_t Fold(uint64_t value) { return value ^ value >> 47; }
  static uint64_t Mix(uint64_t u, uint64_t v, uint64_t by) { return Fold((v ^ Fold((u ^ v) * by)) * by) * by; }

  // Of 17 to 64 bytes: of the first and the last 16; of more than 32, that and the 16 next to them.
  static uint64_t Middle(const char* at, uint64_t size, uint64_t by) {
    const uint64_t a = Eight(at) * (size > 32 ? k2 : k1), b = Eight(at + 8), c = Eight(at + size - 8) * by,
                   y = Turn(a + b, 43) + Turn(c, 30) + Eight(at + size - 16) * k2,
                   z = Mix(y, a + Turn(b + k2, 18) + c, by);
    if (size <= 32) return z;
    const uint64_t e = Eight(at + 16) * by, f = Eight(at + 24), g = (y + Eight(at + size - 32)) * by,
                   h = (z + Eight(at + size - 24)) * by;
    return Mix(Turn(e + f, 43) + Turn(g, 30) + h, e + Turn(f + a, 18) + g, by);
  }

  static Pair Weak(const char* at, uint64_t a, uint64_t b) {
    const uint64_t last = Eight(at + 24), first = a + Eight(at), sum = first + Eight(at + 8) + Eight(at + 16);
    return {sum + last, Turn(b + first + last, 21) + Turn(sum, 44) + first};
  }

  struct State {
    uint64_t x, y, z;
    Pair v, w;

    void Take(const char* at, uint64_t by, uint64_t times) {
      x = Turn(x + y + v.first + Eight(at + 8), 37) * by ^ w.second * times;
      y = Turn(y + v.second + Eight(at + 48), 42) * by + v.first * times + Eight(at + 40);
      z = Turn(z + w.first, 33) * by;
      v = Weak(at, v.second * by, x + w.first);
      w = Weak(at + 32, z + w.second, y + Eight(at + 16));
      std::swap(z, x);
    }
  };

  static uint64_t Long(const char* at, uint64_t size) {
    constexpr uint64_t kSeed = 81, kBegin = kSeed * k1 + 113;
    const uint64_t rest = (size - 1) & 63;
    const char *const end = at + (size - 1 - rest), *const last = at + size - 64;
    State state{kSeed * k2 + Eight(at), kBegin, Fold(kBegin * k2 + 113) * k2, {0, 0}, {0, 0}};
    for (; at != end; at += 64) state.Take(at, k1, 1);
    const uint64_t by = k1 + ((state.z & 0xff) << 1);
    state.w.first += rest;
    state.v.first += state.w.first;
    state.w.first += state.v.first;
    state.Take(last, by, 9);
    return Mix(Mix(state.v.first, state.w.first, by) + Fold(state.y) * k0 + state.z,
               Mix(state.v.second, state.w.second, by) + state.x, by);
  }
};

}  // namespace afm_ctr

#endif  // AFM_CTR_NATIVE_FINGERPRINT_H_
