// The order of records inside a block, as afm_ctr/records/order.py defines it.
#ifndef AFM_CTR_NATIVE_ORDER_H_
#define AFM_CTR_NATIVE_ORDER_H_

#include <cstdint>
#include <vector>

namespace afm_ctr {

class Permutation {
 public:
  // The numbers 0 .. count - 1 sorted by the raw stream of a Philox generator with this key, equal draws in order.
  // Valid until the next call.
  const uint32_t* Make(int64_t count, const uint64_t key[2]);

 private:
  std::vector<uint64_t> draws_;
  std::vector<uint32_t> places_, other_;
};

}  // namespace afm_ctr

#endif  // AFM_CTR_NATIVE_ORDER_H_
