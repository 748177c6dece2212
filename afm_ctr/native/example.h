// One tf.train.Example of the record contract (afm_ctr/records/example.py) to numbers.
#ifndef AFM_CTR_NATIVE_EXAMPLE_H_
#define AFM_CTR_NATIVE_EXAMPLE_H_

#include <cstddef>
#include <cstdint>

namespace afm_ctr {

struct Contract {
  int64_t slots;
  int64_t feature_size;  // ids are in [0, feature_size)
  bool labelled;         // every row has a label
  bool binary;           // which is 0 or 1
  bool portable;         // no instruction but those that every machine of the kind has
};

struct Row {
  int64_t* ids;    // [slots]
  float* values;   // [slots]
  float label;     // NaN: it has none
  float weight;    // 1 if it has none
  int64_t group;   // 0 if it has none
  bool has_group;
  const uint8_t* key;  // into the message; of size 0 if it has none
  size_t key_size;
};

// False for every message that is not plainly of the contract: malformed, a length, type or number that is not
// allowed, but also what is allowed and unusual (a feature given twice). TensorFlow's parser decides about those.
// kSlack bytes behind the message must be readable; what they are does not matter.
constexpr int64_t kSlack = 64;
bool parse_example(const uint8_t* data, size_t size, const Contract& contract, Row* row);

}  // namespace afm_ctr

#endif  // AFM_CTR_NATIVE_EXAMPLE_H_
