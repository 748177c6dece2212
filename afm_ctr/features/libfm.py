"""libfm rows: texts of ``id:value`` entries, assigned to fields by their ids."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from afm_ctr.features.cell_ops import NUMBER, WHOLE, FieldCells
from afm_ctr.features.rows import EncodedSlots, TableRows
from afm_ctr.schema import LIBFM_COLUMN, LibfmField, ResolvedSchema


class LibfmEncoder(tf.Module):
    """All fields of a libfm schema, in schema order.

    An entry whose value is not a finite float32 makes its field bad, and so do more entries than the field has
    slots. Text that is not an entry, or an id outside all fields' ranges, is counted as a bad cell of the first
    field; that field's entries stay, like the rest of the row.
    """

    def __init__(self, schema: ResolvedSchema, fields: list[LibfmField]) -> None:
        super().__init__()
        order = sorted(range(len(fields)), key=lambda i: fields[i].ids)
        self._by_id = np.array(order, np.int32)
        self._lo = np.array([fields[i].ids[0] for i in order], np.int64)
        self._hi = np.array([fields[i].ids[1] for i in order], np.int64)
        self._capacity = np.array([field.max_values for field in fields], np.int64)
        self._first_slot = np.cumsum(self._capacity) - self._capacity
        self._owner = np.repeat(np.arange(len(fields), dtype=np.int32), self._capacity)
        self._table_rows = TableRows(schema, [fields[i].name for i in self._owner])

    def __call__(self, cells: FieldCells) -> EncodedSlots:
        entries = tf.strings.split(cells.columns[LIBFM_COLUMN])
        batch, num_fields, num_slots = entries.nrows(), len(self._capacity), len(self._owner)
        row = entries.value_rowids()
        is_entry = tf.strings.regex_full_match(entries.flat_values, f"{WHOLE}:{NUMBER}")
        parts = tf.strings.split(tf.where(is_entry, entries.flat_values, "0:0"), ":").flat_values
        parts = tf.reshape(parts, (-1, 2))
        ids = tf.strings.to_number(parts[:, 0], tf.int64)
        numbers = tf.strings.to_number(parts[:, 1], tf.float64)
        values = tf.cast(numbers, tf.float32)

        place = tf.searchsorted(tf.constant(self._lo), ids, side="right") - 1
        inside = (place >= 0) & (ids < tf.gather(self._hi, tf.maximum(place, 0))) & is_entry
        place = tf.maximum(place, 0)
        field = tf.gather(self._by_id, place)
        local = ids - tf.gather(self._lo, place)
        finite = tf.math.is_finite(values)
        taken = inside & finite & (numbers != 0)

        def count(mask: tf.Tensor, key: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
            return tf.math.unsorted_segment_sum(tf.cast(mask, tf.int64), key, size)

        key = row * num_fields + tf.cast(field, tf.int64)
        cells = batch * num_fields
        kept = tf.reshape(count(taken, key, cells), (-1, num_fields))
        bad = (kept > self._capacity) | (tf.reshape(count(inside & ~finite, key, cells), (-1, num_fields)) > 0)

        key, row, field = (tf.boolean_mask(part, taken) for part in (key, row, field))
        position = _position(key, cells) if self._capacity.max() > 1 else tf.zeros_like(key)
        slot = tf.minimum(position, tf.gather(self._capacity, field) - 1) + tf.gather(self._first_slot, field)
        # Slots of fields with too many entries are written more than once; these fields are bad and not read.
        where = slot * batch + row
        shape = (num_slots * batch,)
        source = tf.tensor_scatter_nd_max(
            tf.fill(shape, np.int64(-1)), where[:, None], tf.range(tf.size(where, tf.int64))
        )
        source = tf.reshape(source, (num_slots, -1))
        present = (source >= 0) & ~tf.gather(tf.transpose(bad), self._owner)
        ids = self._gather(tf.boolean_mask(local, taken), source)
        vals = self._gather(tf.boolean_mask(values, taken), source)
        stray = count(~inside, entries.value_rowids(), batch) > 0
        bad = tf.transpose(bad)
        bad = tf.concat([bad[:1] | stray[None, :], bad[1:]], 0)
        return EncodedSlots(self._table_rows(ids), vals, present, bad)

    @staticmethod
    def _gather(entries: tf.Tensor, source: tf.Tensor) -> tf.Tensor:
        """``entries[source]``, and 0 where ``source`` is −1 (also without any entries)."""
        padded = tf.concat([tf.zeros((1,), entries.dtype), entries], 0)
        return tf.gather(padded, source + 1)


def _position(key: tf.Tensor, cells: tf.Tensor) -> tf.Tensor:
    """The number of earlier entries with the same key: int64 [T] to int64 [T]."""
    order = tf.argsort(key, stable=True)
    counts = tf.math.bincount(tf.cast(key, tf.int32), minlength=tf.cast(cells, tf.int32), dtype=tf.int64)
    starts = tf.cumsum(counts, exclusive=True)
    rank = tf.range(tf.size(key, tf.int64)) - tf.gather(starts, tf.gather(key, order))
    return tf.scatter_nd(order[:, None], rank, tf.shape(key, tf.int32))
