"""Rows in memory, from a DataFrame: the same schema, transform and statistics as a prepared data set."""

from __future__ import annotations

import dataclasses
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from afm_ctr.analysis import Analysis, Analyzer, spec_needs_analysis
from afm_ctr.errors import UserError
from afm_ctr.export.columns import column_forms
from afm_ctr.features import FeatureTransform
from afm_ctr.forked import refuse_forked
from afm_ctr.infer import infer_schema, labelled_advice
from afm_ctr.models import CTRModel
from afm_ctr.models.batches import check_batch_size
from afm_ctr.rawlog import LineParser, ParsedLines, Reject, RowBatch, word_columns
from afm_ctr.rawlog.arrow_texts import is_list, plain_table
from afm_ctr.schema import FeatureSchema, ParquetFormat, ResolvedSchema, resolve
from afm_ctr.training import TrainConfig, build_model
from afm_ctr.training.base_rate import LabelSums, initial_bias
from afm_ctr.visible import counted
from serving.cell_text import NoCell, cell_text

_ROWS = 4096
_SAMPLED = 30_000
_SOURCE = "frame"


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class FrameData:
    """Encoded rows of a DataFrame, n of them, in the frame's order.

    Attributes:
        schema: resolved; ``from_pandas(other, data.schema)`` encodes another frame's rows in the same way.
        feature_ids: int64 ``[n, F]``; 0 is absent.
        feature_vals: float32 ``[n, F]``.
        labels: float32 ``[n]``; None if the frame lacks the label's column.
        weights: float32 ``[n]``; None if the schema has none.
        keys: each row's text in the key column, else ``frame#<number>``, from 1.
        rejects: the rows that were rejected, with their reasons.
    """

    schema: ResolvedSchema
    feature_ids: np.ndarray
    feature_vals: np.ndarray
    labels: np.ndarray | None
    weights: np.ndarray | None
    keys: list[bytes]
    rejects: tuple[Reject, ...] = ()

    def __len__(self) -> int:
        return len(self.feature_ids)

    def __repr__(self) -> str:
        fields, (rows, slots) = len(self.schema.spec.fields), self.feature_ids.shape
        named = f"{self.schema.spec.name!r}, {counted(rows, 'row')}, {counted(fields, 'field')}"
        return f"FrameData({named}, {counted(slots, 'slot')}, {counted(self.schema.feature_size, 'id')})"

    def take(self, rows: Any) -> FrameData:
        """Some of the rows: an index array, a mask, or a slice."""
        at = np.atleast_1d(np.arange(len(self))[rows])
        return dataclasses.replace(
            self,
            feature_ids=self.feature_ids[at],
            feature_vals=self.feature_vals[at],
            labels=None if self.labels is None else self.labels[at],
            weights=None if self.weights is None else self.weights[at],
            keys=[self.keys[i] for i in at.tolist()],
        )

    def as_dataset(
        self, batch_size: int = 1024, *, shuffle: bool = False, seed: int = 0, supervised: bool = False
    ) -> tf.data.Dataset:
        """Batches for a training loop; the last one of an epoch may be smaller.

        Args:
            batch_size: rows of a batch.
            shuffle: in another order each epoch.
            seed: of that order.
            supervised: elements are ``(x, label, weight)`` as ``keras.Model.fit`` takes them. Otherwise a dict of
                ``feature_ids``, ``feature_vals``, ``label`` and ``weight``, as far as present.

        Raises:
            UserError: ``supervised`` without labels, or there are no rows.
        """
        check_batch_size(batch_size)
        if supervised and self.labels is None:
            label = self.schema.spec.label
            column = f"; its column {label.column!r} was not in the frame" if label else ": the schema has no label"
            raise UserError(f"there are no labels, which supervised=True needs{column}")
        columns = {"feature_ids": self.feature_ids, "feature_vals": self.feature_vals}
        more = {"label": self.labels, "weight": self.weights}
        columns |= {name: values for name, values in more.items() if values is not None}
        held = {name: tf.constant(values) for name, values in columns.items()}
        rows = tf.data.Dataset.range(len(self))
        if shuffle:
            rows = rows.shuffle(max(len(self), 1), seed=seed, reshuffle_each_iteration=True)

        def batch(at: tf.Tensor) -> Any:
            found = {name: tf.gather(values, at) for name, values in held.items()}
            if not supervised:
                return found
            label, weight = found.pop("label"), found.pop("weight", None)
            return (found, label) if weight is None else (found, label, weight)

        return rows.batch(batch_size).map(batch).prefetch(2)

    def model(
        self, name: str = "afm", *, loss: str = "log", row_l2: float = 0.0, seed: int = 0, **options: Any
    ) -> CTRModel:
        """A new, uncompiled model for these rows; its bias starts at the base rate of their labels.

        Args:
            name: of a registered model: afm, deep_afm, fm, lr, or a plug-in.
            loss: ``log``, or ``squared``.
            row_l2: λ of λ‖row‖² for each row of the table that a batch touches.
            seed: of initial weights and dropout.
            **options: of the model, such as ``factors``.

        Raises:
            UserError: an unknown model or option, or a schema without a label.
        """
        content = {"model": {"name": name, **options}, "loss": loss, "row_l2": row_l2, "seed": seed}
        config = TrainConfig.parse(content, "FrameData.model")
        model = build_model(self.schema, config)
        if self.labels is not None:
            weights = np.ones(len(self)) if self.weights is None else self.weights.astype(np.float64)
            sums = LabelSums(float(weights.sum()), float(weights @ self.labels.astype(np.float64)))
            bias = initial_bias(model, sums)
            model.bias.assign(0.0 if bias is None else bias)
        return model


def from_pandas(
    frame: Any,
    schema: FeatureSchema | ResolvedSchema | None = None,
    *,
    label: str | None = None,
    max_reject_share: float = 0.01,
) -> FrameData:
    """Encode the rows of a DataFrame, in memory, to the ids and values that ``prepare`` would write.

    Args:
        frame: of pandas, or anything with ``to_arrow`` (polars), or a ``pyarrow.Table``.
        schema: a :class:`ResolvedSchema` is applied unchanged. A :class:`FeatureSchema` learns its vocabularies and
            statistics from all rows of this frame; its format is ignored, columns are found by their headers.
            None: it is inferred, as by ``afm-ctr infer-schema``.
        label: the label's column, if the schema is inferred.
        max_reject_share: a larger share of bad rows is an error.

    Raises:
        UserError: a missing column, a column type that no cell can have, no rows left, too many rejects, or a schema
            with side tables or negatives to be drawn, which need ``prepare``.

    Example:
        >>> data = from_pandas(frame, label="clicked")
        >>> model = data.model("afm", factors=8)
        >>> model.compile("adam")
        >>> model.fit(data, epochs=3)
    """
    refuse_forked()
    if not isinstance(max_reject_share, int | float) or not 0 <= max_reject_share <= 1:
        raise UserError(f"max_reject_share must be between 0 and 1, got {max_reject_share!r}")
    if schema is not None and not isinstance(schema, FeatureSchema | ResolvedSchema):
        how = "FeatureSchema.load(path) or ResolvedSchema.load(path) reads one"
        raise UserError(f"schema must be a FeatureSchema or a ResolvedSchema, got {schema!r:.60}: {how}")
    table = _table(frame)
    if not table.num_rows:
        raise UserError("the frame has no rows")
    if schema is None:
        schema = _inferred(table, label)
    elif label is not None:
        raise UserError("label= is for a schema that is inferred; this one names its label itself")
    resolved = schema if isinstance(schema, ResolvedSchema) else None
    spec = schema.spec if isinstance(schema, ResolvedSchema) else schema
    forms = column_forms(resolved) if resolved is not None else {}
    floats = {name for name, form in forms.items() if form.takes_floats}
    parsed = list(_parsed(table, _readable(spec), word_columns(spec) - floats))
    if isinstance(schema, FeatureSchema):
        schema = resolve(spec, _analysed(spec, parsed))
    return _encoded(schema, parsed, max_reject_share)


def _table(frame: Any) -> Any:
    """The rows as an Arrow table of plain types."""
    try:
        import pyarrow
    except ImportError as error:
        raise UserError("a DataFrame is read by pyarrow, which is not installed: pip install pyarrow") from error
    if isinstance(frame, pyarrow.RecordBatch):
        frame = pyarrow.Table.from_batches([frame])
    elif hasattr(frame, "to_arrow"):
        try:
            frame = frame.to_arrow()
        except pyarrow.ArrowException as error:
            raise UserError(f"the frame has a column of a type that Arrow lacks: {error}; cast it") from error
    elif hasattr(frame, "iloc") and hasattr(frame, "columns"):
        # Columns are found by name, and names in pandas may be any object.
        columns = [_column(frame.iloc[:, place]) for place in range(len(frame.columns))]
        frame = pyarrow.table(columns, names=[str(name) for name in frame.columns])
    if not isinstance(frame, pyarrow.Table):
        what = type(frame).__name__
        how = "collect() it first" if hasattr(frame, "collect") else "make one with pandas.DataFrame(…)"
        raise UserError(f"from_pandas takes a DataFrame or a pyarrow.Table, got {what}: {how}")
    return plain_table(frame)


def _column(series: Any) -> Any:
    """A pandas column as an Arrow array, if a value's text then does not depend on the types of other values; else
    the texts of its values.
    """
    import pyarrow

    if hasattr(series, "sparse"):
        series = series.sparse.to_dense()
    if hasattr(series, "cat") and series.cat.categories.dtype == object:
        series = series.astype(object)
    try:
        array = pyarrow.Array.from_pandas(series)
    except (pyarrow.ArrowException, TypeError, OverflowError, UnicodeError):
        return _texts(series)
    kind = array.type
    if pyarrow.types.is_dictionary(kind) and isinstance(kind.value_type, pyarrow.BaseExtensionType):
        named = f"{series.name!r} is of type {kind.value_type.extension_name}"
        raise UserError(f"the frame's column {named}, which no cell can have; use astype(str)")
    return array if series.dtype != object or _keeps_texts(kind, series) else _texts(series)


def _keeps_texts(kind: Any, series: Any) -> bool:
    """Whether Arrow's type preserves the texts of Python values: 2 next to 1.10 must not become 2.00; sets vary."""
    from pyarrow import types

    if is_list(kind):
        found, kind = set(map(type, series)), kind.value_type
        if set in found or types.is_floating(kind):
            return False
    if types.is_floating(kind):
        return not {np.float16, np.float32} & set(map(type, series))
    exact = (types.is_unicode, types.is_binary, types.is_integer, types.is_boolean, types.is_null, types.is_nested)
    return any(is_kind(kind) for is_kind in exact)


def _texts(series: Any) -> Any:
    """The cells of a column as bytes, or as lists of bytes if values are lists."""
    import pyarrow

    missing = series.isna().tolist()
    lists = set(map(type, series[series.notna()])) <= {list, tuple, np.ndarray}
    cells: list[Any] = []
    for value, absent in zip(series, missing, strict=True):
        try:
            if absent:
                cells.append(None)
            else:
                cells.append([cell_text(part) for part in value] if lists else cell_text(value))
        except NoCell as error:
            where = f"the frame's column {series.name!r}, row {len(cells) + 1}"
            raise UserError(f"{where}: {error}; make texts of it, or drop the column") from error
    return pyarrow.array(cells, pyarrow.list_(pyarrow.binary()) if lists else pyarrow.binary())


def _inferred(table: Any, label: str | None) -> FeatureSchema:
    """The schema inferred from a sample of the rows, evenly spread, written to a temporary file."""
    import pyarrow.parquet

    stride = max(1, table.num_rows // _SAMPLED)
    with tempfile.TemporaryDirectory(prefix="afm-ctr-") as folder:
        path = Path(folder) / f"{_SOURCE}.parquet"
        try:
            pyarrow.parquet.write_table(table.take(np.arange(0, table.num_rows, stride)), path)
        except pyarrow.ArrowException as error:
            raise UserError(f"the frame has a column that cannot be stored to look at: {error}; cast it") from error
        try:
            found = infer_schema([str(path)], label=None if label is None else str(label))
        except UserError as error:
            text = labelled_advice(error).replace("--label ", "label=")
            raise UserError(text.replace(str(path), "the frame")) from error
    key = found.schema.key
    if columns := [column for column in found.columns if column["suggested"] is None and column["name"] != key]:
        which = "; ".join(f"{column['name']}: {column['odd'][0]}" for column in columns[:5])
        more = f"; and {len(columns) - 5} more" if len(columns) > 5 else ""
        lost = f"from_pandas left out {counted(len(columns), 'column')}, which your own schema may name: "
        warnings.warn(f"{lost}{which}{more}", stacklevel=3)
    return found.schema


def _readable(spec: FeatureSchema) -> FeatureSchema:
    """The schema for a table in memory."""
    if spec.side_tables:
        raise UserError("the schema has side tables: join them to the frame, or use `afm-ctr prepare`")
    if spec.negative_sampling is not None and spec.negative_sampling.apply == "here":
        raise UserError("the schema has negatives to be drawn (negative_sampling.apply: here): use `afm-ctr prepare`")
    if isinstance(spec.format, ParquetFormat):
        return spec
    if spec.format.kind == "libfm":
        raise UserError("a schema of libfm text has one column of pairs; a DataFrame has separate columns")
    separator = getattr(spec.format, "list_separator", "|")
    layout = ParquetFormat(kind="parquet", columns=spec.format.columns, list_separator=separator)
    return spec.model_copy(update={"format": layout})


def _parsed(table: Any, spec: FeatureSchema, words: Set[str]) -> Iterator[ParsedLines]:
    header = table.schema.remove_metadata().serialize().to_pybytes()
    names = set(table.column_names)
    headers = {column.name: column.header or column.name for column in spec.format.columns}  # type: ignore[union-attr]
    labelled = spec.label is not None and headers.get(spec.label.column, spec.label.column) in names
    parser = LineParser(spec, header, labelled, source=_SOURCE)
    for name in sorted(words & parser.types.keys()):
        _refuse_whole_floats(name, headers.get(name, name), table, parser.types[name])
    for start in range(0, table.num_rows, _ROWS):
        yield parser.parse(RowBatch(table.slice(start, _ROWS)), _SOURCE, start + 1)


def _refuse_whole_floats(name: str, header: str, table: Any, kind: Any) -> None:
    """Whole numbers next to a blank become floats in pandas, and 7.0 is another word than 7: refuse to guess."""
    import pyarrow
    import pyarrow.compute

    if not pyarrow.types.is_floating(kind) or header not in table.column_names:
        return
    values = table.column(header).cast(pyarrow.float64())
    if pyarrow.compute.any(pyarrow.compute.is_inf(values)).as_py():
        raise UserError(f"the frame's column {name!r} holds inf, which is not a valid number; make it NaN, or text")
    whole = pyarrow.compute.equal(pyarrow.compute.floor(values), values)
    if pyarrow.compute.any(whole).as_py():
        raise UserError(
            f"the frame's column {name!r} holds floats where the schema has ids or words: 7.0 is not 7, "
            "and pandas makes floats of whole numbers next to a blank; use astype('Int64') or astype(str)"
        )


def _analysed(spec: FeatureSchema, parsed: list[ParsedLines]) -> Analysis:
    if not spec_needs_analysis(spec):
        return Analysis.empty()
    analyzer, rows = Analyzer(spec, chunk=0), 0
    for part in parsed:
        if len(part):
            analyzer.add(part.columns, rows)
            rows += len(part)
    return Analysis.merge([analyzer.partial()])


def _encoded(schema: ResolvedSchema, parsed: list[ParsedLines], max_reject_share: float) -> FrameData:
    spec, transform = schema.spec, FeatureTransform(schema)
    signature = {name: tf.TensorSpec([None], tf.string, name) for name in schema.raw_columns}

    @tf.function(autograph=False)
    def encode(columns: Mapping[str, tf.Tensor]) -> Any:
        with tf.device("/CPU:0"):
            return transform(columns)

    # One graph per frame: traced by name, TensorFlow would warn of retracing.
    traced = encode.get_concrete_function(signature)
    rejects: list[Reject] = []
    found: list[tuple[np.ndarray, ...]] = []
    keys: list[bytes] = []
    for part in parsed:
        rejects += part.rejects
        if not len(part):
            continue
        encoded = traced({name: tf.constant(part.columns[name], tf.string) for name in schema.raw_columns})
        ids, vals, bad = (x.numpy() for x in (encoded.feature_ids, encoded.feature_vals, encoded.bad))
        for row in np.flatnonzero(bad.any(axis=1)).tolist():
            field = spec.fields[int(bad[row].argmax())]
            rejects.append(part.reject(row, spec.bad_reason(field) or "bad_cell", f"field {field.name!r}"))
        good = np.flatnonzero(~bad.any(axis=1))
        found.append((ids[good], vals[good], part.labels[good], part.weights[good]))
        keys += [part.keys[i] for i in good.tolist()]
    rows = len(keys) + len(rejects)
    if len(rejects) > max_reject_share * rows or not keys:
        reasons = ", ".join(
            f"{reason}: {count}" for reason, count in Counter(r.reason for r in rejects).most_common()
        )
        first = f"; the first: row {rejects[0].line}, {rejects[0].reason} {rejects[0].detail}" if rejects else ""
        bad_rows = f"{len(rejects):,} of {rows:,} rows are bad ({reasons})"
        raise UserError(f"{bad_rows}{first}; correct them, or see max_reject_share")
    ids, vals, labels, weights = (np.concatenate(column) for column in zip(*found, strict=True))
    labelled = spec.label is not None and not np.isnan(labels).all()
    weighted = labelled and (spec.weight is not None or spec.negative_sampling is not None)
    return FrameData(
        schema, ids, vals, labels if labelled else None, weights if weighted else None, keys, tuple(rejects)
    )
