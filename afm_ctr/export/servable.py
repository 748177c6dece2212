"""The model as served: one object with a function per signature, built from stock TensorFlow ops."""

from __future__ import annotations

from functools import partial
from typing import Any

import tensorflow as tf

from afm_ctr.errors import in_graph
from afm_ctr.export.examples import parse_examples
from afm_ctr.export.streamed import StreamedTable, Untracked
from afm_ctr.features import FeatureTransform
from afm_ctr.models import CTRModel
from afm_ctr.schema import ResolvedSchema


class Servable(tf.Module):
    """A trained model together with the transform of its schema.

    Every function takes tensors whose first dimension is the number of rows B (0 is allowed) and returns a dict of
    tensors whose first dimension is B. No row makes a call fail, since a server that batches would fail other
    callers' requests with it: an id that the table does not have, a value that is not finite and an Example that does
    not parse are treated as missing, and ``bad_cells`` int32 [B] counts them.

    Args:
        model: built, with the weights to serve.
        half_vectors: of :func:`afm_ctr.export.float16.halve_vectors`, if the model scores from those; the vectors in
            full precision are then left out.
        streamed: holds the rows in the SavedModel if the model's table is in a checkpoint's files.

    Attributes:
        score_name: ``probability``, or ``score`` for a model trained on squared loss.
    """

    def __init__(
        self,
        model: CTRModel,
        schema: ResolvedSchema,
        half_vectors: tf.Variable | None = None,
        streamed: StreamedTable | None = None,
    ) -> None:
        super().__init__(name="afm_ctr_servable")
        self.score_name = model.output_name
        self.transform = FeatureTransform(schema)
        self._slots = schema.num_slots
        self._rows = schema.feature_size
        self._columns = tuple(schema.raw_columns)
        # Only the model's variables are saved, not the model: a Keras object brings its optimizer and a tree of
        # Python configuration with it.
        self._call = Untracked(model)
        self._weights = [variable.value for variable in model.weights]
        if half_vectors is not None:
            full = model.table.columns["vectors"].value
            self._weights = [*(weight for weight in self._weights if weight is not full), half_vectors]
        if streamed is not None:
            self.table = streamed
            model.table.read = streamed.read  # type: ignore[method-assign]  # only for this table

    def by_ids(self, feature_ids: tf.Tensor, feature_vals: tf.Tensor) -> dict[str, tf.Tensor]:
        """``feature_ids`` int64 [B, F], ``feature_vals`` float32 [B, F] to score, logit and ``bad_cells``."""
        ids, vals, bad = self._checked(feature_ids, feature_vals)
        return {**self._scores(ids, vals), "bad_cells": bad}

    def by_examples(self, examples: tf.Tensor) -> dict[str, tf.Tensor]:
        """Serialized ``tf.train.Example`` records, string [B], to score, logit and ``bad_cells``.

        All cells of a record without F ids and F values count as bad.
        """
        parsed = parse_examples(examples, self._slots)
        outputs = self.by_ids(parsed.ids, parsed.vals)
        outputs["bad_cells"] = tf.where(parsed.ok, outputs["bad_cells"], self._slots)
        return outputs

    def by_raw_columns(self, **columns: tf.Tensor) -> dict[str, tf.Tensor]:
        """Raw columns, string [B] each (empty = missing), to score, logit and ``bad_cells`` int32 [B].

        An unreadable cell follows its field's missing policy and is counted in ``bad_cells``.
        """
        encoded = self.transform(self._same_length(columns))
        outputs = self._scores(encoded.feature_ids, encoded.feature_vals)
        outputs["bad_cells"] = tf.reduce_sum(tf.cast(encoded.bad, tf.int32), axis=1)
        return outputs

    def attention(self, feature_ids: tf.Tensor, feature_vals: tf.Tensor) -> dict[str, tf.Tensor]:
        """``attention`` float32 [B, pairs], whose shares sum to 1 over the pairs of present slots; ``bad_cells``."""
        ids, vals, bad = self._checked(feature_ids, feature_vals)
        shares = self._call.value.attention({"feature_ids": ids, "feature_vals": vals})
        return {"attention": shares, "bad_cells": bad}

    def signatures(self) -> dict[str, Any]:
        """The concrete functions by signature name; ``explain`` only if the model has attention."""
        ids = tf.TensorSpec([None, self._slots], tf.int64, name="feature_ids")
        vals = tf.TensorSpec([None, self._slots], tf.float32, name="feature_vals")
        texts = {name: tf.TensorSpec([None], tf.string, name=name) for name in self._columns}
        traced = partial(tf.function, autograph=False)
        functions = {
            "serving_default": traced(self.by_ids).get_concrete_function(ids, vals),
            "examples": traced(self.by_examples).get_concrete_function(
                tf.TensorSpec([None], tf.string, name="examples")
            ),
            "raw": traced(self.by_raw_columns).get_concrete_function(**texts),
        }
        if self.has_attention:
            functions["explain"] = traced(self.attention).get_concrete_function(ids, vals)
        return functions

    @property
    def has_attention(self) -> bool:
        """Whether the model gives pairs shares of attention."""
        ids = tf.zeros([1, self._slots], tf.int64)
        return self._call.value.attention({"feature_ids": ids, "feature_vals": tf.zeros(ids.shape)}) is not None

    def _scores(self, ids: tf.Tensor, vals: tf.Tensor) -> dict[str, tf.Tensor]:
        model = self._call.value
        logit = model({"feature_ids": ids, "feature_vals": vals}, training=False, corrected=True)
        return {self.score_name: model.predictions(logit), "logit": logit}

    def _checked(self, ids: tf.Tensor, vals: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Ids and values with the impossible ones replaced, and the number of those per row, int32 [B]."""
        # Not every server checks the caller's shapes against the signature: a batch of one row would be broadcast
        # over the other input, and surplus columns would be ignored.
        ids = tf.ensure_shape(ids, [None, self._slots])
        vals = tf.ensure_shape(vals, [None, self._slots])
        same = tf.debugging.Assert(
            tf.equal(tf.shape(ids)[0], tf.shape(vals)[0]),
            [in_graph("feature_ids and feature_vals must have the same number of rows")],
        )
        with tf.control_dependencies([same]):
            # The value of an absent slot is never used.
            bad = (ids < 0) | (ids >= self._rows) | ((ids != 0) & ~tf.math.is_finite(vals))
        count = tf.reduce_sum(tf.cast(bad, tf.int32), axis=1)
        return tf.where(bad, tf.zeros_like(ids), ids), tf.where(bad, tf.zeros_like(vals), vals), count

    def _same_length(self, columns: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        sizes = tf.stack([tf.size(column) for column in columns.values()])  # one check: an op a column costs time
        check = tf.debugging.Assert(
            tf.reduce_all(tf.equal(sizes, sizes[0])), [in_graph("raw columns must all have the same number of rows")]
        )
        with tf.control_dependencies([check]):
            return {name: tf.identity(column) for name, column in columns.items()}
