#include "order.h"

#include <cstddef>
#include <utility>

namespace afm_ctr {
namespace {

// Philox4x64-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011) as NumPy's
// bit generator of that name runs it: the counter begins at 1.
void draw(uint64_t counter, const uint64_t key[2], uint64_t out[4]) {
  uint64_t c[4] = {counter, 0, 0, 0}, k0 = key[0], k1 = key[1];
  for (int round = 0; round < 10; round++) {
    const auto a = static_cast<unsigned __int128>(0xD2E7470EE14C6C93ull) * c[0];
    const auto b = static_cast<unsigned __int128>(0xCA5A826395121157ull) * c[2];
    const uint64_t first = static_cast<uint64_t>(b >> 64) ^ c[1] ^ k0, third = static_cast<uint64_t>(a >> 64) ^ c[3] ^ k1;
    c[1] = static_cast<uint64_t>(b);
    c[3] = static_cast<uint64_t>(a);
    c[0] = first;
    c[2] = third;
    k0 += 0x9E3779B97F4A7C15ull;
    k1 += 0xBB67AE8584CAA73Bull;
  }
  for (int i = 0; i < 4; i++) out[i] = c[i];
}

}  // namespace

const uint32_t* Permutation::Make(int64_t count, const uint64_t key[2]) {
  const size_t n = count;
  draws_.resize((n + 3) / 4 * 4);
  places_.resize(n);
  other_.resize(n);
  for (size_t i = 0; i < n; i += 4) draw(i / 4 + 1, key, &draws_[i]);
  // Sorted by the upper 16 bits, lower byte first; that leaves little to do.
  for (size_t i = 0; i < n; i++) places_[i] = static_cast<uint32_t>(i);
  for (int shift = 48; shift < 64; shift += 8) {
    uint32_t begins[256] = {}, total = 0;
    for (size_t i = 0; i < n; i++) begins[draws_[i] >> shift & 255]++;
    for (uint32_t& begin : begins) total += std::exchange(begin, total);
    for (const uint32_t place : places_) other_[begins[draws_[place] >> shift & 255]++] = place;
    places_.swap(other_);
  }
  for (size_t i = 1; i < n; i++) {
    const uint32_t place = places_[i];
    size_t at = i;
    for (; at > 0 && draws_[places_[at - 1]] > draws_[place]; at--) places_[at] = places_[at - 1];
    places_[at] = place;
  }
  return places_.data();
}

}  // namespace afm_ctr
