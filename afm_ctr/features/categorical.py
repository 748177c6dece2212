"""Categorical fields and crosses: one stack of slots per kind of id space."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf

from afm_ctr.features.cell_ops import FieldCells, parse_whole, split_pieces
from afm_ctr.features.rows import EncodedSlots, TableRows
from afm_ctr.schema import CategoricalField, ResolvedSchema, VocabularySpace, WordField

LocalIds = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor | None]]


class HashIds(tf.Module):
    """Fingerprint64 of the bytes, or SipHash-2-4 with a key, mod ``buckets``. [s, B] strings to int64 [s, B]; nothing
    is bad.

    Source of SipHash: Aumasson and Bernstein, SipHash: a fast short-input PRF, 2012.
    """

    def __init__(self, buckets: int, key: bytes | None = None) -> None:
        super().__init__()
        self.buckets = buckets
        # The op takes the key's two little-endian words as signed numbers.
        words = [] if key is None else [key[:8], key[8:]]
        self.key = [int.from_bytes(word, "little", signed=True) for word in words]

    def __call__(self, cells: tf.Tensor) -> tuple[tf.Tensor, None]:
        if self.key:
            return tf.strings.to_hash_bucket_strong(cells, self.buckets, self.key), None
        return tf.strings.to_hash_bucket_fast(cells, self.buckets), None


class DeclaredLocalIds(tf.Module):
    """The integer in the cell; bad outside [0, size). ``sizes``: one per slot of the stack."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self._sizes = np.array(sizes, np.int64)[:, None]

    def __call__(self, cells: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        numbers = parse_whole(cells)
        inside = numbers.values < self._sizes
        return tf.where(inside, numbers.values, np.int64(0)), numbers.bad | (numbers.ok & ~inside)


class VocabularyIds(tf.Module):
    """Line number in the vocabulary file, after the out-of-vocabulary rows. The file is an asset of a SavedModel."""

    def __init__(self, space: VocabularySpace, entries: int, file: Path) -> None:
        super().__init__()
        self._oov = space.oov
        self._table: tf.lookup.StaticHashTable | None = None
        if entries:  # an empty file cannot initialise a table
            whole, number = tf.lookup.TextFileIndex.WHOLE_LINE, tf.lookup.TextFileIndex.LINE_NUMBER
            lines = tf.lookup.TextFileInitializer(str(file), tf.string, whole, tf.int64, number, vocab_size=entries)
            self._table = tf.lookup.StaticHashTable(lines, default_value=-1)

    def __call__(self, cells: tf.Tensor) -> tuple[tf.Tensor, None]:
        if self._oov > 1:
            unknown = tf.strings.to_hash_bucket_fast(cells, self._oov)
        else:
            unknown = tf.zeros_like(cells, tf.int64)
        if self._table is None:
            return unknown, None
        line = self._table.lookup(cells)
        return tf.where(line < 0, unknown, line + self._oov), None


class CategoricalEncoder(tf.Module):
    """Fields whose cells become local ids in the same way.

    Args:
        fields: the fields; single-valued ones must come first.
        local_ids: string [s, B] to local ids int64 [s, B] and bad bool [s, B] (or ``None``).
        strip: whether to strip white space from cells and their pieces.
    """

    def __init__(
        self, schema: ResolvedSchema, fields: list[WordField], local_ids: LocalIds, strip: bool = False
    ) -> None:
        super().__init__()
        self._singles = tuple(field for field in fields if field.separator is None)
        self._multis = tuple(f for f in fields if isinstance(f, CategoricalField) and f.separator is not None)
        self._local_ids = local_ids
        self._strip = strip
        counts = [field.max_values for field in fields]
        spaces = [schema.spec.space_of(field).name for field in fields]
        self._table_rows = TableRows(schema, [s for s, n in zip(spaces, counts, strict=True) for _ in range(n)])
        self._owner = np.repeat(np.arange(len(fields), dtype=np.int32), counts)

    @property
    def multi_fields(self) -> tuple[str, ...]:
        """Names of the multi-valued fields, in the order of ``cut``."""
        return tuple(field.name for field in self._multis)

    def __call__(self, columns: FieldCells) -> EncodedSlots:
        cells, weights, cut = [], [], []
        if self._singles:
            cells.append(tf.stack([columns.words(field) for field in self._singles]))
            weights.append(tf.ones_like(cells[0], tf.float32))
        for field in self._multis:
            pieces, more = split_pieces(columns.words(field), field, self._strip, columns.missing(field))
            cut.append(more)
            dense = tf.transpose(pieces.to_tensor("", shape=(None, field.max_values)))
            weight = tf.ones_like(dense, tf.float32)
            if field.value == "mean":
                weight /= tf.cast(tf.maximum(pieces.row_lengths(), 1), tf.float32)
            cells.append(dense)
            weights.append(weight)
        stack = tf.concat(cells, 0)
        if self._strip:
            stack = tf.strings.strip(stack)
        present = tf.strings.length(stack) > 0
        local, bad = self._local_ids(stack)
        if bad is not None:
            # A bad piece makes the whole cell bad, and a bad cell is missing.
            bad = tf.math.segment_max(tf.cast(bad, tf.int32), self._owner) > 0
            present &= ~tf.gather(bad, self._owner)
        return EncodedSlots(self._table_rows(local), tf.concat(weights, 0), present, bad, tuple(cut))
