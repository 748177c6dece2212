"""The transform: a resolved schema as one TensorFlow object."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from afm_ctr.features.categorical import CategoricalEncoder, DeclaredLocalIds, HashIds, VocabularyIds
from afm_ctr.features.cell_ops import FieldCells
from afm_ctr.features.libfm import LibfmEncoder
from afm_ctr.features.numeric import BucketEncoder, NumberColumns, ValueEncoder
from afm_ctr.features.times import TimeEncoder
from afm_ctr.schema import (
    DeclaredIds,
    HashSpace,
    LibfmField,
    NumericField,
    ResolvedSchema,
    TimeField,
    ValueEncoding,
    VocabularySpace,
    WordField,
    missing_space,
    slots_of,
)
from afm_ctr.schema.keys import checked_key
from afm_ctr.schema.resolved import vocabulary_bytes


class Encoded(NamedTuple):
    """A batch of rows in a model's input format.

    Attributes:
        feature_ids: int64 [B, F]; 0 is absent.
        feature_vals: float32 [B, F]; 0 where absent.
        bad: bool [B, fields]: cells that could not be read; their ids follow the field's ``missing`` policy.
        cut: int32 [B, multi-valued fields]: the number of values dropped beyond ``max_values``; the fields are
            :attr:`FeatureTransform.multi_fields`.
    """

    feature_ids: tf.Tensor
    feature_vals: tf.Tensor
    bad: tf.Tensor
    cut: tf.Tensor


class FeatureTransform(tf.Module):
    """Raw columns to :class:`Encoded`, in stock TensorFlow ops; eagerly, in a ``tf.function``, in a SavedModel.

    Rows are independent: a row's position in the batch never changes its ids. Fields of the same kind are stacked, so
    that a row of 39 fields takes few ops. Vocabularies are lookup tables over files, which become assets of a
    SavedModel; until then they are in a temporary folder of this object.

    Args:
        schema: the resolved schema.

    Raises:
        UserError: the key of a hashed field cannot be read, or is another one.

    Example:
        >>> transform = FeatureTransform(ResolvedSchema.load("prepared"))
        >>> transform({"user": tf.constant(["196"]), "item": tf.constant(["242"])}).feature_ids
    """

    def __init__(self, schema: ResolvedSchema) -> None:
        super().__init__(name="feature_transform")
        self.schema = schema
        self._columns = tuple(schema.raw_columns)
        self.vocabulary_folder = tempfile.mkdtemp(prefix="afm-ctr-vocabularies-")
        weakref.finalize(self, _remove, self.vocabulary_folder, os.getpid())
        self._numbers: NumberColumns | None = None
        self._encoders = tuple(self._build())
        self._arrange(schema)
        del self._order  # only needed while the encoders are built

    def __call__(self, columns: Mapping[str, Any]) -> Encoded:
        """Encode a batch.

        Args:
            columns: string [B] for every one of ``schema.raw_columns``; an empty text is a missing cell.

        Raises:
            ValueError: a column is not there.
        """
        absent = [name for name in self._columns if name not in columns]
        if absent:
            raise ValueError(f"columns: '{absent[0]}' is not there; give every one of {list(self._columns)}")
        texts = {name: tf.convert_to_tensor(columns[name], tf.string) for name in self._columns}
        cells = FieldCells(self.schema.spec, texts)
        numbers = self._numbers(cells) if self._numbers is not None else None
        parts = [e(numbers if isinstance(e, (ValueEncoder, BucketEncoder)) else cells) for e in self._encoders]
        own = self._own_ids[:, None]
        ids, vals, present = (
            tf.gather(tf.concat([getattr(part, name) for part in parts], 0), self._slot_order)
            for name in ("ids", "vals", "present")
        )
        vals = tf.where(present, vals, (own > 0).astype(np.float32))
        ids = tf.where(present, ids, own)
        none_bad = tf.zeros((1, tf.shape(ids)[1]), tf.bool)
        bad = tf.concat([*(part.bad for part in parts if part.bad is not None), none_bad], 0)
        none_cut = tf.zeros((0, tf.shape(none_bad)[1]), tf.int32)
        cut = tf.concat([none_cut, *(more[None] for part in parts for more in part.cut)], 0)
        bad = tf.gather(bad, self._bad_order)
        return Encoded(tf.transpose(ids), tf.transpose(vals), tf.transpose(bad), tf.transpose(cut))

    @property
    def multi_fields(self) -> tuple[str, ...]:
        """Names of the multi-valued fields, in the order of :attr:`Encoded.cut`."""
        words = (encoder for encoder in self._encoders if isinstance(encoder, CategoricalEncoder))
        return tuple(name for encoder in words for name in encoder.multi_fields)

    def _build(self) -> list[Any]:
        """One encoder per kind of encoding; ``_order`` records the fields of each."""
        spec = self.schema.spec
        self._order: list[tuple[list[Any], bool]] = []
        encoders: list[Any] = []

        def add(encoder: Any, fields: list[Any], may_be_bad: bool) -> None:
            encoders.append(encoder)
            self._order.append((fields, may_be_bad))

        numeric = [f for f in spec.fields if isinstance(f, NumericField)]
        if numeric:
            numbers = self._numbers = NumberColumns(spec, numeric)
            values = [f for f in numeric if isinstance(f.encoding, ValueEncoding)]
            buckets = [f for f in numeric if not isinstance(f.encoding, ValueEncoding)]
            if values:
                add(ValueEncoder(self.schema, values, numbers.rows_of(values)), values, True)
            if buckets:
                add(BucketEncoder(self.schema, buckets, numbers.rows_of(buckets)), buckets, True)
        libfm = [f for f in spec.fields if isinstance(f, LibfmField)]
        if libfm:
            add(LibfmEncoder(self.schema, libfm), libfm, True)
        times = [f for f in spec.fields if isinstance(f, TimeField)]
        if times:
            add(TimeEncoder(self.schema, times), times, True)
        for (kind, _), fields in self._word_groups().items():
            first = spec.space_of(fields[0])
            if kind == "hash":
                encoder = CategoricalEncoder(self.schema, fields, self._hash(first.name, first.space))
            elif kind == "vocabulary":
                encoder = CategoricalEncoder(self.schema, fields, self._vocabulary(first.name, first.space))
            else:
                sizes = [spec.space_of(f).space.size for f in fields for _ in range(slots_of(f))]
                encoder = CategoricalEncoder(self.schema, fields, DeclaredLocalIds(sizes), strip=True)
            add(encoder, fields, kind == "ids")
        return encoders

    def _word_groups(self) -> dict[tuple[str, Any], list[WordField]]:
        """Fields grouped by encoder, single-valued ones first."""
        groups: dict[tuple[str, Any], list[WordField]] = {}
        for field in sorted(
            (f for f in self.schema.spec.fields if isinstance(f, WordField)), key=lambda f: f.separator is not None
        ):
            name, space = self.schema.spec.space_of(field)
            same: Any = None
            if isinstance(space, HashSpace):
                same = (space.buckets, space.key_file)
            elif not isinstance(space, DeclaredIds):
                same = name
            groups.setdefault((space.kind, same), []).append(field)
        return groups

    def _hash(self, name: str, space: HashSpace) -> HashIds:
        if space.key_file is None:
            return HashIds(space.buckets)
        return HashIds(space.buckets, checked_key(space.key_file, self.schema.key_checks[name]))

    def _vocabulary(self, name: str, space: VocabularySpace) -> VocabularyIds:
        entries = self.schema.vocabularies[name]
        file = Path(self.vocabulary_folder) / f"{name}.txt"
        file.write_bytes(vocabulary_bytes(entries))
        return VocabularyIds(space, len(entries), file)

    def _arrange(self, schema: ResolvedSchema) -> None:
        """Positions of each slot and each field's bad cells in the concatenated results of the encoders."""
        first_slot = {slot.field: slot.index for slot in reversed(schema.slots)}
        number = {field.name: index for index, field in enumerate(schema.spec.fields)}
        slots: list[int] = []
        bad_fields: list[int] = []
        for fields, may_be_bad in self._order:
            for field in fields:
                slots += range(first_slot[field.name], first_slot[field.name] + slots_of(field))
            bad_fields += [number[field.name] for field in fields] if may_be_bad else []
        self._slot_order = np.argsort(np.array(slots)).astype(np.int32)
        # Fields whose cells cannot be bad read the last row, which is all false.
        self._bad_order = np.full(len(number), len(bad_fields), np.int32)
        self._bad_order[bad_fields] = np.arange(len(bad_fields))
        self._own_ids = np.zeros(len(slots), np.int64)
        for field in schema.spec.fields:
            if field.missing == "own":
                self._own_ids[first_slot[field.name]] = schema.global_id(missing_space(field.name), 0)


def _remove(folder: str, owner: int) -> None:
    """Remove the vocabulary files; a forked copy of the process must leave them to the original."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)
