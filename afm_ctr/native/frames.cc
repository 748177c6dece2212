// Records: the arrays of some rows to tf.train.Examples in their frames. No TensorFlow here.
//
// The bytes are those of afm_ctr/records/example.py, which describes them and writes them where this is not built.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "crc32c.h"

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "records are little endian, and are written as they lie");

namespace afm_ctr {
namespace {

constexpr int64_t kAhead = 4;    // rows
constexpr size_t kLongest = 10;  // bytes of a base-128 number
// Feature.kind of tensorflow/core/example/feature.proto: field number and wire type 2 in one byte.
constexpr uint8_t kBytes = 0x0A, kFloat = 0x12, kInt64 = 0x1A;

size_t varint_size(uint64_t value) {
  size_t size = 1;
  for (; value > 0x7F; value >>= 7) size++;
  return size;
}

uint8_t* put_varint(uint8_t* to, uint64_t value) {
  for (; value > 0x7F; value >>= 7) *to++ = static_cast<uint8_t>(value) | 0x80;
  *to++ = static_cast<uint8_t>(value);
  return to;
}

uint8_t* put(uint8_t* to, const void* bytes, size_t size) {
  if (size) memcpy(to, bytes, size);
  return to + size;
}

// A length-delimited field 1 or 2 of `size` bytes: its tag and its length.
uint8_t* put_head(uint8_t* to, uint8_t tag, size_t size) {
  *to++ = tag;
  return put_varint(to, size);
}

size_t with_head(size_t size) { return 1 + varint_size(size) + size; }

// A map entry: name -> Feature with a list of `size` bytes.
size_t entry_size(const char* name, size_t size) {
  return with_head(with_head(strlen(name)) + with_head(with_head(with_head(size))));
}

// All of an entry that comes before its payload. Three messages are in one another: Feature, its list, the values.
uint8_t* put_entry(uint8_t* to, const char* name, uint8_t kind, size_t size) {
  const size_t length = strlen(name), list = with_head(size), feature = with_head(list);
  to = put_head(to, 0x0A, with_head(length) + with_head(feature));
  to = put(put_head(to, 0x0A, length), name, length);
  to = put_head(to, 0x12, feature);
  to = put_head(to, kind, list);
  return put_head(to, 0x0A, size);
}

}  // namespace
}  // namespace afm_ctr

// Columns are [rows]; ids and values [rows, slots], or of more rows, of which `order` says which are taken. Of label,
// weight and group null: no row has one. The frames go to `frames`, which has room for afm_ctr_frames_room(…) bytes, and
// their sizes to `sizes`. Returns the bytes written, or -1: a key is outside its text, or a value is not finite.
extern "C" int64_t afm_ctr_frames_room(int64_t rows, int64_t slots, const int64_t* key_starts,
                                       const int64_t* key_ends, int64_t text_size) {
  using namespace afm_ctr;  // NOLINT
  int64_t room = 0;
  for (int64_t row = 0; row < rows; row++) {
    if (key_starts[row] < 0 || key_starts[row] > key_ends[row] || key_ends[row] > text_size) return -1;
    room += kHeader + kFooter + 256 + slots * (kLongest + sizeof(float)) + (key_ends[row] - key_starts[row]);
  }
  return room;
}

extern "C" int64_t afm_ctr_frame_examples(int64_t rows, int64_t slots, const int64_t* id, const float* value,
                                          const float* label, const float* weight, const int64_t* group,
                                          const bool* has_group, const uint8_t* keys, const int64_t* key_starts,
                                          const int64_t* key_ends, const int64_t* order, uint8_t* frames,
                                          int64_t* sizes) {
  using namespace afm_ctr;  // NOLINT
  static const Crc32c crc = find_crc32c(false);
  uint8_t* to = frames;
  std::vector<uint8_t> packed(slots * kLongest);
  std::vector<uint8_t*> records(rows);
  for (int64_t row = 0; row < rows; row++) {
    const int64_t* const ids = id + (order ? order[row] : row) * slots;
    const float* const values = value + (order ? order[row] : row) * slots;
    if (order && row + kAhead < rows) {  // the rows of an order lie far apart
      const int64_t next = order[row + kAhead] * slots;
      for (int64_t slot = 0; slot < slots; slot += 8) __builtin_prefetch(id + next + slot);
      for (int64_t slot = 0; slot < slots; slot += 16) __builtin_prefetch(value + next + slot);
    }
    uint8_t* end = packed.data();
    bool finite = true;
    for (int64_t slot = 0; slot < slots; slot++) finite &= std::isfinite(values[slot]);
    if (!finite) return -1;
    for (int64_t slot = 0; slot < slots; slot++) end = put_varint(end, ids[slot]);
    const size_t ids_size = end - packed.data(), values_size = slots * sizeof(float),
                 key_size = key_ends[row] - key_starts[row];
    const bool grouped = group && has_group[row], labelled = label && !std::isnan(label[row]);
    size_t all = entry_size("feature_ids", ids_size) + entry_size("feature_vals", values_size);
    if (grouped) all += entry_size("group", varint_size(group[row]));
    all += entry_size("key", key_size);
    if (labelled) all += entry_size("label", sizeof(float));
    if (weight) all += entry_size("weight", sizeof(float));

    const uint64_t size = with_head(all);
    records[row] = to + kHeader;
    to = put(to, &size, sizeof size);
    const uint32_t check = masked(crc.one(to - sizeof size, sizeof size));
    to = put(to, &check, sizeof check);
    to = put_head(to, 0x0A, all);
    to = put(put_entry(to, "feature_ids", kInt64, ids_size), packed.data(), ids_size);
    to = put(put_entry(to, "feature_vals", kFloat, values_size), values, values_size);
    if (grouped) to = put_varint(put_entry(to, "group", kInt64, varint_size(group[row])), group[row]);
    to = put(put_entry(to, "key", kBytes, key_size), keys + key_starts[row], key_size);
    if (labelled) to = put(put_entry(to, "label", kFloat, sizeof(float)), label + row, sizeof(float));
    if (weight) to = put(put_entry(to, "weight", kFloat, sizeof(float)), weight + row, sizeof(float));
    sizes[row] = to + kFooter - records[row] + kHeader;
    to += kFooter;
  }
  for (int64_t row = 0; row < rows; row += kTogether) {
    const uint8_t* starts[kTogether];
    size_t lengths[kTogether];
    uint32_t crcs[kTogether];
    const int count = std::min<int64_t>(kTogether, rows - row);
    for (int n = 0; n < kTogether; n++) {
      const int64_t at = row + std::min(n, count - 1);
      starts[n] = records[at];
      lengths[n] = sizes[at] - kHeader - kFooter;
    }
    crc.several(starts, lengths, crcs);
    for (int n = 0; n < count; n++) {
      const uint32_t check = masked(crcs[n]);
      put(records[row + n] + lengths[n], &check, sizeof check);
    }
  }
  return to - frames;
}
