"""The model around an interaction: table, bias, loss, one step of training."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from afm_ctr import distributed, optimizers
from afm_ctr.embedding import EmbeddingTable
from afm_ctr.errors import UserError, explained
from afm_ctr.models.base import InteractionInputs, RowsRead
from afm_ctr.models.batches import as_batch, as_batches, as_validation
from afm_ctr.models.options import parse_options
from afm_ctr.models.registry import interaction_class
from afm_ctr.sparse_gradients import change_values, read_rows


@keras.saving.register_keras_serializable(package="afm_ctr")
class WeightedMean(keras.metrics.Metric):
    """Σ w·value / Σ w, with numerator and weight kept apart in float64 so that they can be added across ranks."""

    def __init__(self, name: str = "loss", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.numerator = self.add_variable((), "zeros", dtype="float64", name="numerator")
        self.weight = self.add_variable((), "zeros", dtype="float64", name="weight")

    def update_state(self, numerator: tf.Tensor, weight: tf.Tensor) -> None:
        """Add a batch's weighted sum and its weight."""
        self.numerator.assign_add(tf.cast(numerator, tf.float64))
        self.weight.assign_add(tf.cast(weight, tf.float64))

    def result(self) -> tf.Tensor:
        return tf.math.divide_no_nan(self.numerator.value, self.weight.value)


@keras.saving.register_keras_serializable(package="afm_ctr")
class CTRModel(keras.Model):
    """A table of ids, a bias and an interaction, trained on a weighted sum of losses.

    Args:
        interaction: name of a registered model.
        options: its options.
        feature_size: number of ids, with id 0 for absent.
        num_slots: F.
        pairs: int ``[P, 2]``, the pairs of slots that take part.
        loss: "log" (binary labels) or "squared" (the paper's; binary labels are trained as −1 and 1).
        label_kind: "binary" or "real".
        row_l2: λ of λ‖row‖² for each row that a batch touches; one number, or by column ("linear", "vectors").
        row_l2_per: "touch", or "step": λ‖row‖² for every row in each step, as a penalty on the whole table. A row
            catches up on the steps since its last touch at the next one; its first touch counts as one step. This
            keeps marks as ``mark_rows`` does.
        seed: of all initial values and dropout.
        mark_rows: keep which step last touched each row of the table, see :class:`EmbeddingTable`.
        bias_offset: added to the logit of all predictions outside the training loop; ln(rate) undoes training on
            logs of which only that share of the negatives was kept.
        precision: "float32", or "bfloat16" for the factors of the interaction's matrix products in training.
        shard_over: the ranks that share the table's rows, each holding its own: see
            :class:`~afm_ctr.distributed.ShardedTable`; None: each rank holds the whole table. Not part of the model's
            configuration: a model loaded from a file holds its whole table.
        table_kind: creates the table, with the arguments of :class:`EmbeddingTable`, if it is of another class; not
            part of the configuration either.
        name: of the model; the paths of its variables begin with it.
        **kwargs: of ``keras.Model``.

    Raises:
        UserError: an unknown model, option or loss, or log loss on real labels.

    Example:
        >>> model = CTRModel("fm", {"factors": 8}, feature_size=100, num_slots=3, pairs=[(0, 1), (0, 2), (1, 2)])
        >>> model({"feature_ids": tf.ones([2, 3], tf.int64), "feature_vals": tf.ones([2, 3])}).shape
        TensorShape([2])
    """

    def __init__(
        self,
        interaction: str,
        options: Mapping[str, Any],
        feature_size: int,
        num_slots: int,
        pairs: np.ndarray | Sequence[Sequence[int]],
        loss: str = "log",
        label_kind: str = "binary",
        row_l2: float | Mapping[str, float] = 0.0,
        row_l2_per: str = "touch",
        seed: int = 0,
        mark_rows: bool = False,
        bias_offset: float = 0.0,
        precision: str = "float32",
        shard_over: distributed.World | None = None,
        table_kind: Callable[..., EmbeddingTable] = EmbeddingTable,
        name: str = "ctr",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        if loss not in ("log", "squared"):
            raise UserError(f"loss must be 'log' or 'squared', got {loss!r}")
        if loss == "log" and label_kind != "binary":
            raise UserError("log loss needs binary labels; this schema's label is real: choose loss: squared")
        layer = interaction_class(interaction)
        self.interaction_name = interaction
        self.options = parse_options(interaction, layer.Options, options)
        self.feature_size = int(feature_size)
        self.num_slots = int(num_slots)
        self.pairs = np.asarray(pairs, np.int32).reshape(-1, 2)
        self.loss_kind = loss
        self.label_kind = label_kind
        self.seed = int(seed)
        self.bias_offset = float(bias_offset)
        self.precision = precision
        columns = {"linear": 1}
        if self.options.factors:
            columns["vectors"] = self.options.factors
        self.row_l2 = _by_column(row_l2, columns)
        if row_l2_per not in ("touch", "step"):
            raise UserError(f"row_l2_per must be 'touch' or 'step', got {row_l2_per!r}")
        self.row_l2_per = row_l2_per
        if shard_over is not None:
            table_kind = functools.partial(distributed.ShardedTable, world=shard_over)
        self.table = table_kind(
            feature_size,
            columns,
            self.seed,
            {"vectors": self.options.init_stddev},
            mark_rows=mark_rows or row_l2_per == "step",
            dtype=self.dtype,
        )
        self.bias = self.add_weight(shape=(), initializer="zeros", name="bias")
        self.interaction = layer(self.options, self.pairs, self.seed, name=interaction, dtype=self.dtype)
        if precision == "bfloat16":
            self.interaction.network_dtype = precision
        self.loss_tracker = WeightedMean(name="loss")
        # A plug-in layer may create its weights in its first call, and they are needed before training starts.
        self.interaction(self._inputs_of(self._blank(), training=False))
        self.built = True

    def build(self, input_shape: Any = None) -> None:
        """Does nothing: all variables are created with the model."""

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The one metric of the training loop; the others are computed exactly, elsewhere."""
        return [self.loss_tracker]

    def _blank(self) -> dict[str, tf.Tensor]:
        ids = tf.zeros([1, self.num_slots], tf.int64)
        return {"feature_ids": ids, "feature_vals": tf.zeros(ids.shape)}

    @property
    def output_name(self) -> str:
        """Name of a prediction: "probability" for log loss, "score" for squared loss."""
        return "probability" if self.loss_kind == "log" else "score"

    def inputs_of(self, batch: Mapping[str, tf.Tensor]) -> InteractionInputs:
        """The interaction's inputs for a batch, read for scoring."""
        return self._inputs_of(batch, training=False)

    def _inputs_of(self, batch: Mapping[str, tf.Tensor], training: bool, checked: bool = False) -> InteractionInputs:
        ids = batch["feature_ids"]
        with tf.name_scope("lookup"):
            present = tf.not_equal(ids, 0)
            # The value of an absent slot, whatever it is, must not reach a product.
            values = tf.cast(batch["feature_vals"], self.compute_dtype)
            values = tf.where(present, values, tf.zeros_like(values))
        read = None
        if training:
            lookup = self.table.lookup(ids, checked)
            rows = {column: lookup.expand(column, values) for column in lookup.rows}
            read = RowsRead(lookup.rows["linear"], lookup.rows.get("vectors"), lookup.inverse, values)
        else:
            with tf.name_scope("lookup"):
                scale = values[..., tf.newaxis]
                rows = {column: read * scale for column, read in self.table.read(ids).items()}
        return InteractionInputs(tf.squeeze(rows["linear"], axis=-1), rows.get("vectors"), present, read)

    def call(
        self,
        inputs: Mapping[str, tf.Tensor],
        training: bool | None = False,
        corrected: bool = False,
        checked: bool = False,
    ) -> tf.Tensor:
        """Logits ``[B]``.

        Args:
            inputs: ``feature_ids`` int64 ``[B, F]``, ``feature_vals`` floating ``[B, F]``, and in training with
                dropout ``row`` int64 ``[B]``; other entries are ignored.
            training: whether dropout applies and ids are merged for the gradient.
            corrected: add ``bias_offset``, as everywhere outside the training step.
            checked: in training, see :meth:`EmbeddingTable.lookup`.
        """
        training = bool(training)
        inputs = as_batch(inputs, self.num_slots)
        features = self._inputs_of(inputs, training, checked)
        rows = inputs.get("row") if training else None
        with tf.name_scope("interaction"):
            logits = self.interaction(features, training=training, rows=rows) + self.bias.value
        return logits + self.bias_offset if corrected and self.bias_offset else logits

    def example_loss(self, labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """The loss of each example, ``[B]``: log loss from logits, or (y − logit)² with y = ±1 for binary labels."""
        labels = tf.cast(labels, logits.dtype)
        if self.loss_kind == "log":
            return tf.nn.sigmoid_cross_entropy_with_logits(labels, logits)
        return tf.square(self.targets(labels) - logits)

    def targets(self, labels: tf.Tensor) -> tf.Tensor:
        """The labels on the scale of the predictions: 0/1 become −1/1 under squared loss."""
        return 2.0 * labels - 1.0 if self.loss_kind == "squared" and self.label_kind == "binary" else labels

    def predictions(self, logits: tf.Tensor) -> tf.Tensor:
        """Probabilities under log loss; under squared loss the logits themselves."""
        return tf.sigmoid(logits) if self.loss_kind == "log" else logits

    def attention(self, batch: Mapping[str, tf.Tensor]) -> tf.Tensor | None:
        """The pairs' shares ``[B, P]``, or None if the model has none."""
        return self.interaction.explain(self.inputs_of(batch))

    def _weighted(self, batch: Mapping[str, tf.Tensor], logits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Σ w·loss and Σ w. An example of weight 0 is padding: its label is not read."""
        if "label" not in batch:
            raise UserError("the rows have no labels, which training and evaluation need; predict() does without")
        labels = tf.cast(batch["label"], logits.dtype)
        weight = tf.cast(batch["weight"], logits.dtype) if "weight" in batch else tf.ones_like(logits)
        counted = weight > 0
        losses = self.example_loss(tf.where(counted, labels, tf.zeros_like(labels)), logits)
        return tf.reduce_sum(losses * weight), tf.reduce_sum(weight)

    def compile(self, optimizer: Any = "adam", **kwargs: Any) -> None:
        """``keras.Model.compile``; the loss is the model's own.

        Args:
            optimizer: a name of :func:`afm_ctr.optimizers.names` ("adam" is the lazy one, which updates only the rows
                of a batch) or of Keras, or any Keras optimizer. One that is not wrapped for several ranks
                (:func:`afm_ctr.distributed.wrap_optimizer`) is wrapped, which also adds up the gradients of ids that
                a batch holds more than once.
            **kwargs: of ``keras.Model.compile``.

        Raises:
            UserError: for ``jit_compile=True``, a loss or metrics, or an optimizer that cannot be wrapped or scales
                or accumulates gradients.
        """
        if kwargs.get("loss") is not None:
            raise UserError(
                f"the model has its own loss ({self.loss_kind!r}): leave loss= out, or make it with loss="
            )
        for name in ("metrics", "weighted_metrics", "loss_weights"):
            if kwargs.get(name):
                raise UserError(f"{name}= would be ignored: only the loss is tracked; use afm_ctr.metrics.Evaluation")
        if kwargs.pop("jit_compile", None) is True:
            raise UserError("jit_compile=True: the exchange between ranks is not an XLA op; leave it out")
        if isinstance(optimizer, str) and optimizer in optimizers.names():
            optimizer = optimizers.build(optimizer)
        if self.table.placement == "sharded" and not isinstance(optimizer, optimizers.RowOptimizer):
            raise UserError(
                f"a sharded table needs an optimizer that updates rows: {', '.join(optimizers.names())}, of "
                "afm_ctr.optimizers"
            )
        if isinstance(optimizer, str) or distributed.world_of(optimizer) is None:
            optimizer = distributed.wrap_optimizer(optimizer, distributed.init())
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer) or optimizer.gradient_accumulation_steps:
            raise UserError(
                "loss scaling and gradient_accumulation_steps do not work with sparse gradients: leave them out"
            )
        super().compile(optimizer=optimizer, jit_compile=False, **kwargs)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile as the model in a file was, so that training can continue."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def export(self, *args: Any, **kwargs: Any) -> None:
        """Refused, as Keras' export would have no schema: see :func:`afm_ctr.export_model`."""
        raise UserError("afm_ctr.export_model(model, path, schema=data.schema) exports with the schema")

    def fit(self, x: Any = None, y: Any = None, **kwargs: Any) -> Any:
        """``keras.Model.fit``.

        Args:
            x: :class:`afm_ctr.FrameData` (``batch_size``, 1,024 by default, and ``shuffle`` apply), a
                :class:`afm_ctr.Reader`, whose order in an epoch follows from its seed and the epoch, a
                ``tf.data.Dataset`` of batches as :meth:`call` takes them with ``label`` and perhaps ``weight``, or of
                ``(x, label[, weight])``; or arrays: a dict of ``feature_ids`` and ``feature_vals``, or ids only,
                whose values are then 1.
            y: labels ``[n]`` or ``[n, 1]``, if ``x`` are arrays.
            **kwargs: of ``keras.Model.fit``; ``validation_data`` may also be one of the first two.

        Raises:
            UserError: no rows; arrays of other shapes than the model's, unknown ids, or invalid values, weights or
                labels; also what the reader raises while it reads.
        """
        if kwargs.get("validation_data") is not None:
            given = kwargs["validation_data"]
            kwargs["validation_data"] = as_validation(given, kwargs.get("batch_size"), self)
        epochs = kwargs.get("epochs", 1)
        x, y = as_batches(x, y, kwargs, self, shuffle=kwargs.get("shuffle", True), epochs=epochs)
        with explained():
            return super().fit(x, y, **kwargs)

    def evaluate(self, x: Any = None, y: Any = None, **kwargs: Any) -> Any:
        """``keras.Model.evaluate`` with the inputs of :meth:`fit`: the loss."""
        x, y = as_batches(x, y, kwargs, self)
        kwargs.pop("shuffle", None)
        with explained():
            return super().evaluate(x, y, **kwargs)

    def predict(self, x: Any, **kwargs: Any) -> Any:
        """``keras.Model.predict`` with the inputs of :meth:`fit`: ``logit`` and ``probability`` or ``score``."""
        x, _ = as_batches(x, None, kwargs, self)
        kwargs.pop("shuffle", None)
        with explained():
            return super().predict(x, **kwargs)

    def train_step(self, batch: Any) -> dict[str, tf.Tensor]:
        """One step on a batch of the reader, or one of ``(x, label[, weight])``.

        A profile goes by the scopes of the operations: merge, lookup, interaction, exchange, optimizer.
        """
        batch = as_batch(batch, self.num_slots)
        checked = "row" in batch  # our readers number the rows, and have checked their ids
        batch = self._numbered(batch)
        with tf.name_scope("train_step"):
            with tf.GradientTape() as tape:
                loss, weight = self._weighted(batch, self(batch, training=True, checked=checked))
            variables = self.trainable_variables
            gradients = tape.gradient(loss, [variable.value for variable in variables])
            gradients = self.table.touched(gradients, variables)
            self.optimizer.apply(gradients, variables, weight=weight, penalty=self._complete)
            self.loss_tracker.update_state(loss, weight)
            return {"loss": self.loss_tracker.result()}

    def _numbered(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """The batch with ``row``, a number for each example and step, for dropout; the reader's batches have it."""
        if "row" in batch:
            return batch
        world = distributed.world_of(self.optimizer)
        rank, size = (world.rank, world.size) if world is not None else (0, 1)
        step = tf.cast(self.optimizer.iterations.value, tf.int64) * size + rank
        count = tf.shape(batch["feature_ids"], out_type=tf.int64)[0]
        return {**batch, "row": step * 2**32 + tf.range(count, dtype=tf.int64)}

    def test_step(self, batch: Any) -> dict[str, tf.Tensor]:
        """The loss of the predictions as they will be served."""
        batch = as_batch(batch, self.num_slots)
        self.loss_tracker.update_state(*self._weighted(batch, self(batch, corrected=True)))
        return {"loss": self.loss_tracker.result()}

    def predict_step(self, batch: Any) -> dict[str, tf.Tensor]:
        """``logit`` and ``probability`` or ``score``, each ``[B]``, as they will be served."""
        batch = as_batch(batch, self.num_slots)
        logits = self(batch, corrected=True)
        return {"logit": logits, self.output_name: self.predictions(logits)}

    def _complete(self, gradients: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
        """Between the exchange and the optimizer: add the penalties, mark the touched rows."""
        penalized = self.penalize(gradients, variables)
        if self.table.last_seen is not None:
            columns = {id(column.value) for column in self.table.columns.values()}
            for gradient, variable in zip(gradients, variables, strict=True):
                if gradient is not None and id(_bare(variable)) in columns:
                    counts = getattr(self.optimizer, "counts", None)
                    self.table.mark(gradient, self.optimizer.iterations.value + 1, counts)
                    break  # all columns have the same touched rows
        return penalized

    def penalize(self, gradients: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
        """Add the penalties to the gradients of a whole step, reduced over ranks and merged.

        2λ·row for each distinct row that the step touches, with ``row_l2_per`` "step" times the steps since its last
        touch, and the interaction's own penalties.

        Args:
            gradients: of ``variables``, one by one; those of table columns are ``tf.IndexedSlices`` with unique rows,
                or dense, in which case the rows that are not all zero count as touched.
            variables: Keras variables or their ``tf.Variable``.
        """
        dense = {id(variable.value): scale for variable, scale in self.interaction.penalties()}
        rows = {id(variable.value): self.row_l2[column] for column, variable in self.table.columns.items()}
        result = []
        for gradient, variable in zip(gradients, variables, strict=True):
            bare = _bare(variable)
            if gradient is not None and dense.get(id(bare)):
                gradient = gradient + 2.0 * dense[id(bare)] * bare
            scale = 2.0 * rows.get(id(bare), 0.0)
            if scale and isinstance(gradient, tf.IndexedSlices):
                penalty = scale * self._steps_due(gradient.indices) * read_rows(bare, gradient.indices)
                gradient = change_values(gradient, gradient.values + penalty)
            elif scale and gradient is not None:
                moved = tf.reduce_any(tf.not_equal(gradient, 0), axis=1, keepdims=True)
                gradient = tf.where(moved, gradient + scale * self._steps_due(None) * bare, gradient)
            result.append(gradient)
        return result

    def _steps_due(self, rows: tf.Tensor | None) -> tf.Tensor | float:
        """The number of steps for which rows are penalised now, ``[n, 1]``; None: for all rows."""
        if self.row_l2_per == "touch":
            return 1.0
        assert self.table.last_seen is not None
        seen = self.table.last_seen.value
        seen = seen if rows is None else tf.gather(seen, rows)
        since = tf.cast(self.optimizer.iterations.value + 1, seen.dtype) - seen
        return tf.cast(tf.where(seen > 0, since, 1), self.compute_dtype)[:, tf.newaxis]

    def get_config(self) -> dict[str, Any]:
        own = {
            "interaction": self.interaction_name,
            "options": self.options.model_dump(),
            "feature_size": self.feature_size,
            "num_slots": self.num_slots,
            "pairs": self.pairs.tolist(),
            "loss": self.loss_kind,
            "label_kind": self.label_kind,
            "row_l2": dict(self.row_l2),
            "row_l2_per": self.row_l2_per,
            "seed": self.seed,
            "mark_rows": self.table.mark_rows,
            "bias_offset": self.bias_offset,
            "precision": self.precision,
        }
        return {**super().get_config(), **own}


def _bare(variable: Any) -> tf.Variable:
    return variable.value if isinstance(variable, keras.Variable) else variable


def _by_column(row_l2: float | Mapping[str, float], columns: Mapping[str, int]) -> dict[str, float]:
    """λ of each column."""
    given = row_l2 if isinstance(row_l2, Mapping) else dict.fromkeys(columns, row_l2)
    for column, value in given.items():
        if column not in columns:
            raise UserError(f"row_l2: the model has no column {column!r}; it has: {', '.join(columns)}")
        if not 0 <= float(value) < float("inf"):
            raise UserError(f"row_l2: {column} must be a number of at least 0, got {value!r}")
    return {column: float(given.get(column, 0.0)) for column in columns}
