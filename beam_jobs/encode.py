"""Parsed lines to ids and values, by the one transform; plain lines need no object a cell for that."""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from afm_ctr import native
from afm_ctr.process_setup import load_tensorflow_without_keras
from afm_ctr.rawlog import ParsedLines
from afm_ctr.rawlog.spans import CellSpans
from afm_ctr.schema import DelimitedFormat, FeatureSchema, ResolvedSchema
from beam_jobs.row_plan import has_row_plan, row_plan
from serving.tensors import objects


class EncodedRows(NamedTuple):
    """What :class:`~afm_ctr.features.Encoded` says, as arrays."""

    feature_ids: np.ndarray
    feature_vals: np.ndarray
    bad: np.ndarray
    cut: np.ndarray


def needs_tensorflow(spec: FeatureSchema) -> bool:
    """Whether an :class:`Encoder` of the schema will load TensorFlow."""
    return not (native.prepares() and has_row_plan(spec))


class Encoder:
    """Runs the transform on parsed lines: by the library in C++ where that has all kinds of the schema's fields, else
    by TensorFlow, which is loaded only then."""

    def __init__(self, schema: ResolvedSchema) -> None:
        self._schema = schema
        self._plan = None if needs_tensorflow(schema.spec) else row_plan(schema)
        self._encoders: dict[tuple[int, ...], native.RowEncoder] = {}
        if self._plan is None:
            self.multi_fields: tuple[str, ...] = self._graphs.multi_fields
        else:
            fields = zip(schema.spec.fields, self._plan, strict=True)
            self.multi_fields = tuple(field.name for field, planned in fields if planned.separator)

    def __call__(self, parsed: ParsedLines) -> EncodedRows:
        if self._plan is None:
            return self._graphs(parsed)
        spans = parsed.spans or CellSpans.of(parsed.columns)
        if spans is None:
            encoded = self._graphs(parsed)
            return encoded._replace(cut=encoded.cut[:, list(map(self._graphs.multi_fields.index, self.multi_fields))])
        places = tuple(spans.places[name] for name in self._schema.raw_columns)
        if places not in self._encoders:
            self._encoders[places] = native.RowEncoder(self._plan, spans.places)
        return EncodedRows(*self._encoders[places](spans.text, spans.starts, spans.ends))

    @cached_property
    def _graphs(self) -> _Graphs:
        return _Graphs(self._schema)


class _Graphs:
    """The transform in TensorFlow. One graph serves all batches; another one each order of columns.

    On the CPU, also where there is a GPU: the work is on texts, workers share the machine, and a logarithm's last
    bit must not depend on where it was computed.
    """

    def __init__(self, schema: ResolvedSchema) -> None:
        load_tensorflow_without_keras()
        import tensorflow as tf

        from afm_ctr.features import FeatureTransform

        self._tf = tf
        self._schema = schema
        self._transform = FeatureTransform(schema)
        self.multi_fields = self._transform.multi_fields
        signature = {name: tf.TensorSpec([None], tf.string, name) for name in schema.raw_columns}
        self._from_columns: Any = tf.function(self._on_cpu, input_signature=[signature], autograph=False)
        self._from_text: dict[tuple[tuple[int, ...], int], Any] = {}
        self._in_place = native.prepares() and not native.load().reason

    def __call__(self, parsed: ParsedLines) -> EncodedRows:
        spans = parsed.spans
        if spans is None:
            encoded = self._from_columns(parsed.columns)
        elif not (self._in_place or isinstance(self._schema.spec.format, DelimitedFormat)):
            encoded = self._from_columns({name: objects(spans.cells(name)) for name in self._schema.raw_columns})
        else:
            cells = tuple(spans.places[name] for name in self._schema.raw_columns), spans.starts.shape[1]
            if cells not in self._from_text:
                self._from_text[cells] = (self._spans_function if self._in_place else self._lines_function)(*cells)
            if self._in_place:
                given = [np.frombuffer(spans.text, np.uint8), spans.starts, spans.ends]
            else:
                given = [self._tf.constant(parsed.lines)]
            encoded = self._from_text[cells](*given)
        return EncodedRows(*(part.numpy() for part in encoded))

    def _on_cpu(self, columns: Any) -> Any:
        with self._tf.device("/CPU:0"):
            return self._transform(columns)

    def _spans_function(self, places: tuple[int, ...], width: int) -> Any:
        from afm_ctr.features.cell_ops import SpanCells

        tf, place = self._tf, dict(zip(self._schema.raw_columns, places, strict=True))

        def encode(text: Any, starts: Any, ends: Any) -> Any:
            with tf.device("/CPU:0"):
                return self._transform.encode(SpanCells(self._schema.spec, text, starts, ends, place))

        edges = tf.TensorSpec([None, width], tf.int32)
        return tf.function(encode, input_signature=[tf.TensorSpec([None], tf.uint8), edges, edges], autograph=False)

    def _lines_function(self, places: tuple[int, ...], width: int) -> Any:
        tf, layout = self._tf, self._schema.spec.format
        assert isinstance(layout, DelimitedFormat)

        def encode(lines: Any) -> Any:
            # Every line has been found to have this number of cells, and quotes are text here: where that is not so,
            # the parser has not left the columns out. (decode_csv takes more than twice as long.)
            cells = tf.raw_ops.StringSplitV2(input=lines, sep=layout.delimiter).values
            columns = tf.unstack(tf.reshape(cells, [-1, width]), axis=1)
            return self._on_cpu({n: columns[at] for n, at in zip(self._schema.raw_columns, places, strict=True)})

        return tf.function(encode, input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
