"""Encodes parsed lines as ids and values."""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from afm_ctr import native
from afm_ctr.process_setup import load_tensorflow_without_keras
from afm_ctr.rawlog import ParsedLines
from afm_ctr.rawlog.spans import CellSpans
from afm_ctr.schema import ResolvedSchema
from beam_jobs.row_plan import row_plan


class EncodedRows(NamedTuple):
    """:class:`~afm_ctr.features.Encoded` as arrays."""

    feature_ids: np.ndarray
    feature_vals: np.ndarray
    bad: np.ndarray
    cut: np.ndarray


class Encoder:
    """Runs the transform on parsed lines: by the C++ library if it is built, else by TensorFlow.

    Both give the same bytes. Rows with a logarithm so close to the midpoint of two float32 that TensorFlow might
    round it the other way, about one in millions, are left to TensorFlow, which is only loaded then.

    Attributes:
        multi_fields: names of the multi-valued fields, in the order of ``cut``.
    """

    def __init__(self, schema: ResolvedSchema) -> None:
        self._schema = schema
        self._plan = row_plan(schema) if native.prepares() else None
        self._encoders: dict[tuple[int, ...], native.RowEncoder] = {}
        fields = schema.spec.fields
        self.multi_fields = tuple(field.name for field in fields if getattr(field, "separator", None) is not None)
        if self._plan is None:
            _ = self._stock

    def __call__(self, parsed: ParsedLines) -> EncodedRows:
        spans = parsed.spans
        if spans is None and self._plan is not None:
            spans = CellSpans.of(parsed.columns)
        if spans is None:
            return self._stock(parsed.columns)
        if self._plan is None:
            return self._stock(spans.columns(self._schema.raw_columns, np.arange(len(parsed))))
        places = tuple(spans.places[name] for name in self._schema.raw_columns)
        if places not in self._encoders:
            self._encoders[places] = native.RowEncoder(self._plan, spans.places)
        encoded = EncodedRows(*self._encoders[places](spans.text, spans.starts, spans.ends))
        unsure = np.flatnonzero(np.isnan(encoded.feature_vals[:, self._logarithms]).any(axis=1))
        if len(unsure):
            stock = self._stock(spans.columns(self._schema.raw_columns, unsure))
            for mine, theirs in zip(encoded, stock, strict=True):
                mine[unsure] = theirs
        return encoded

    @cached_property
    def _logarithms(self) -> list[int]:
        """Slots whose values are logarithms."""
        named = {
            f.name
            for f, made in zip(self._schema.spec.fields, self._plan or (), strict=True)
            if made.kind == "logarithm"
        }
        return [slot.index for slot in self._schema.slots if slot.field in named]

    @cached_property
    def _stock(self) -> Any:
        """The transform in TensorFlow on raw columns (object arrays). All batches share one graph.

        It runs on the CPU even if there is a GPU: it processes texts, workers share the machine, and a logarithm's
        last bit must not depend on the device.
        """
        load_tensorflow_without_keras()
        import tensorflow as tf

        from afm_ctr.features import FeatureTransform

        transform = FeatureTransform(self._schema)
        multi_fields = [transform.multi_fields.index(name) for name in self.multi_fields]

        @tf.function(
            input_signature=[{name: tf.TensorSpec([None], tf.string, name) for name in self._schema.raw_columns}],
            autograph=False,
        )
        def on_cpu(columns: Any) -> Any:
            with tf.device("/CPU:0"):
                return transform(columns)

        def encode(columns: Any) -> EncodedRows:
            encoded = EncodedRows(*(part.numpy() for part in on_cpu(columns)))
            return encoded._replace(cut=encoded.cut[:, multi_fields])

        return encode
