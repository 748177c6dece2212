"""A DataFrame to a trained model, in memory."""

from __future__ import annotations

import datetime as dt
import math
import os
import signal
from decimal import Decimal
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import afm_ctr
from afm_ctr.errors import UserError
from afm_ctr.frames import from_pandas
from afm_ctr.schema import FeatureSchema
from serving.cell_text import cell_text

pandas = pytest.importorskip("pandas", reason="pandas is not installed")

SPEC: dict[str, Any] = {
    "name": "shop",
    "format": {"kind": "delimited", "header": True, "columns": [{"name": "user", "header": "user id"}]},
    "label": {"column": "clicked"},
    "weight": "w",
    "fields": [
        {"name": "user", "kind": "categorical", "encoding": {"kind": "vocabulary", "min_count": 1}},
        {"name": "item", "kind": "categorical", "encoding": {"kind": "hash", "buckets": 20}, "missing": "own"},
        {"name": "price", "kind": "numeric", "encoding": {"kind": "value", "log": True, "standardise": True}},
        {
            "name": "tags",
            "kind": "categorical",
            "separator": "|",
            "max_values": 3,
            "encoding": {"kind": "hash", "buckets": 9},
        },
    ],
}


def frame(rows: int = 400, seed: int = 0) -> Any:
    """Clicks where user and item agree in parity; blanks in every column but the label."""
    rng = np.random.default_rng(seed)
    user, item = rng.integers(0, 6, rows), rng.integers(0, 6, rows)
    return pandas.DataFrame(
        {
            "user id": [f"u{i}" for i in user],
            "item": [None if i == 5 else f"i{i}" for i in item],
            "price": np.where(rng.random(rows) < 0.1, np.nan, rng.lognormal(size=rows)),
            "tags": [["a", "b"][: int(n)] for n in rng.integers(0, 3, rows)],
            "clicked": (user + item) % 2,
            "w": rng.integers(1, 4, rows),
        }
    )


@pytest.fixture(scope="module")
def data() -> Any:
    return from_pandas(frame(), FeatureSchema.model_validate(SPEC))


def test_rows_keep_their_order_and_their_columns(data: Any) -> None:
    rows = frame()
    assert len(data) == len(rows) and data.feature_ids.shape == (400, 6)
    np.testing.assert_array_equal(data.labels, rows["clicked"])
    np.testing.assert_array_equal(data.weights, rows["w"])
    assert data.keys[:2] == [b"frame#1", b"frame#2"] and not data.rejects
    same_user = rows["user id"].to_numpy()[:, None] == rows["user id"].to_numpy()
    np.testing.assert_array_equal(data.feature_ids[:, :1] == data.feature_ids[:, 0], same_user)
    np.testing.assert_array_equal(data.feature_ids[:, 2] == 0, rows["price"].isna())
    logs = np.log1p(rows["price"].dropna())
    expected = (logs - logs.mean()) / logs.std(ddof=0)
    np.testing.assert_allclose(data.feature_vals[~rows["price"].isna(), 2], expected, rtol=1e-5, atol=1e-6)


def test_another_frame_is_encoded_by_the_same_schema(data: Any) -> None:
    other = from_pandas(frame().iloc[::-1], data.schema)
    np.testing.assert_array_equal(other.feature_ids, data.feature_ids[::-1])
    np.testing.assert_array_equal(data.take(slice(None, None, -1)).feature_vals, other.feature_vals)
    unlabelled = from_pandas(frame().drop(columns=["clicked", "w"]), data.schema)
    assert unlabelled.labels is None and unlabelled.weights is None
    np.testing.assert_array_equal(unlabelled.feature_ids, data.feature_ids)


def test_polars_and_arrow_tables(data: Any) -> None:
    arrow = pytest.importorskip("pyarrow").Table.from_pandas(frame(), preserve_index=False)

    class Polars:
        def to_arrow(self) -> Any:
            return arrow

    for one in (arrow, Polars()):
        np.testing.assert_array_equal(from_pandas(one, data.schema).feature_ids, data.feature_ids)


def test_a_schema_is_inferred(data: Any) -> None:
    found = from_pandas(frame().drop(columns="w"), label="clicked")
    assert {field.name for field in found.schema.spec.fields} >= {"user_id", "item", "price"}
    np.testing.assert_array_equal(found.labels, data.labels)


def test_a_fresh_model_starts_at_the_base_rate(data: Any) -> None:
    rate = float(data.weights @ data.labels) / float(data.weights.sum())
    assert float(data.model("lr").bias.numpy()) == pytest.approx(math.log(rate / (1 - rate)), rel=1e-6)


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "rmsprop", keras.optimizers.Adam(0.05)])
def test_it_learns_with_our_optimizers_and_with_stock_ones(data: Any, optimizer: Any) -> None:
    model = data.model("afm", factors=4, attention=4, scale_by_pairs=True, pooled_dropout=0.1)
    model.compile(optimizer)
    rate, epochs = (0.5, 12) if optimizer == "sgd" else (0.15, 4)
    model.optimizer.learning_rate = rate
    history = model.fit(data, batch_size=50, epochs=epochs, validation_data=data, verbose=0).history
    assert history["loss"][-1] < 0.8 * history["loss"][0] and history["val_loss"][-1] < history["val_loss"][0]
    predicted = model.predict(data, verbose=0)
    assert predicted["probability"].shape == (400,)
    assert model.evaluate(data, verbose=0) == pytest.approx(history["val_loss"][-1], rel=1e-5)


def test_arrays_and_datasets_take_the_same_step(data: Any) -> None:
    """x, y and weight as arrays, as a supervised dataset and as rows in memory: the same weights, bit by bit."""
    x = {"feature_ids": data.feature_ids, "feature_vals": data.feature_vals}

    def weights(*args: Any, **kwargs: Any) -> list[np.ndarray]:
        model = data.model("fm", factors=4)
        model.compile("adagrad")
        model.fit(*args, **kwargs, verbose=0)
        return model.get_weights()

    expected = weights(data, batch_size=100, shuffle=False)
    for found in (
        weights(x, data.labels, sample_weight=data.weights, batch_size=100, shuffle=False),
        weights(x, data.labels[:, None], sample_weight=data.weights, batch_size=100, shuffle=False),
        weights(data.as_dataset(100, supervised=True)),
    ):
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("use", "words"),
    [
        (lambda model, data: model.fit(data, data.labels), "y: the rows of a FrameData have their own"),
        (lambda model, data: model.fit(data, sample_weight=data.weights), "sample_weight: the rows of a FrameData"),
        (lambda model, data: model.fit(data, validation_split=0.1), "validation_split is for arrays"),
        (lambda model, data: model.fit(data, batch_size=2.5), "batch_size must be a whole number"),
        (lambda model, data: model.fit(data, validation_data=frame(5)), "a DataFrame has no ids yet"),
        (lambda model, data: model.fit(data, validation_data=data.take([])), "there are no rows"),
        (lambda model, data: model.predict(data.take([])), "there are no rows"),
        (lambda model, data: model.fit(data.as_dataset(9).unbatch()), r"feature_ids must be \[batch, 6\]"),
        (lambda model, data: data.as_dataset(0), "batch_size must be a whole number"),
    ],
)
def test_arguments_that_would_be_lost_are_refused(data: Any, use: Any, words: str) -> None:
    model = data.model("lr")
    model.compile("adam")
    with pytest.raises(UserError, match=words):
        use(model, data)


def test_class_weights_are_weights(data: Any) -> None:
    x = {"feature_ids": data.feature_ids, "feature_vals": data.feature_vals}

    def weights(*args: Any, **kwargs: Any) -> list[np.ndarray]:
        model = data.model("lr")
        model.compile("adagrad")
        model.fit(*args, **kwargs, batch_size=100, shuffle=False, verbose=0)
        return model.get_weights()

    expected = weights(x, data.labels, sample_weight=data.weights * np.where(data.labels > 0, 5, 1))
    for rows in (data, data.as_dataset(100)):
        for one, other in zip(weights(rows, class_weight={0: 1.0, 1: 5.0}), expected, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows.drop(columns="item"), "item"),
        (lambda rows: rows.iloc[:0], "the frame has no rows"),
        (lambda rows: rows.assign(clicked="maybe"), "400 of 400 rows are bad .bad_label: 400."),
        (lambda rows: rows.assign(price=[{"a": 1}] * len(rows)), "'price' is a struct"),
        (lambda rows: rows.rename(columns={"price": "item"}), "names column 'item' twice"),
        (lambda rows: rows.assign(item=pandas.interval_range(0, 400)), "'item' is of type pandas.interval"),
        (
            lambda rows: rows.assign(item=pandas.period_range("2020", periods=400, freq="D")),
            "pandas.period, which no",
        ),
        (lambda rows: 3, "takes a DataFrame or a pyarrow.Table, got int"),
        (lambda rows: rows.assign(item=[{"a", "b"}] * len(rows)), "'item', row 1: .* is neither text"),
        (lambda rows: rows.assign(item=[*["a"] * 399, object()]), "'item', row 400: .* is neither text"),
        (lambda rows: rows.assign(item=math.inf), "'item' holds inf"),
    ],
)
def test_errors_in_one_line(change: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        from_pandas(change(frame()), FeatureSchema.model_validate(SPEC))


def test_integers_of_any_size_and_columns_that_nobody_reads(data: Any) -> None:
    ids = [2**70, 2**63, -1, 2**64 - 1] * 100
    rows = frame().assign(item=pandas.Series(ids, dtype=object)).drop(columns="w").assign(z=1, y=2)
    rows.columns = [*rows.columns[:-1], "z"]
    spec = FeatureSchema.model_validate({**SPEC, "weight": None})
    as_texts = from_pandas(rows.assign(item=[str(i) for i in ids]), spec)
    np.testing.assert_array_equal(from_pandas(rows, spec).feature_ids, as_texts.feature_ids)


def test_a_value_has_the_same_text_whatever_stands_next_to_it() -> None:
    """As the client and a pipeline's rows have it, in a column of objects and in one of categories."""
    columns: list[list[Any]] = [
        [Decimal("1.10"), Decimal("2"), Decimal("NaN"), None],
        [dt.date(2024, 1, 1), dt.datetime(2024, 1, 1, 5), pandas.NaT, dt.date(2024, 1, 2)],
        [dt.datetime(2024, 1, 1), dt.datetime(2024, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=2))), None, None],
        [np.float32(0.1), 0.5, np.longdouble("0.3"), np.float16(0.7)],
        ["a", b"b", 3, True],
        [["a", 1, True], ("b",), None, []],
        [[1, 2.5], [3.0], np.array([0.1]), [None]],
        [[Decimal("1.10"), Decimal("2")], [Decimal("3")], [], []],
    ]
    rows = pandas.DataFrame({f"x{i}": pandas.Series(values, dtype=object) for i, values in enumerate(columns)})
    for i in range(5):
        rows[f"x{i + len(columns)}"] = rows[f"x{i}"].astype("category")
    field = {"kind": "categorical", "encoding": {"kind": "vocabulary", "min_count": 1}}
    spec = {
        "name": "texts",
        "format": {"kind": "delimited", "header": True},
        "fields": [{"name": name, **field} for name in rows.columns],
    }
    found = from_pandas(rows, FeatureSchema.model_validate(spec))
    for name, values in rows.items():
        texts = {cell_text(value, [b"|"]) for value in values} - {b""}
        assert found.schema.vocabularies[name] == tuple(sorted(texts)), name
    np.testing.assert_array_equal(from_pandas(rows.iloc[:1], found.schema).feature_ids, found.feature_ids[:1])


def test_sparse_and_short_floats_are_read_as_dense_ones(data: Any) -> None:
    dense = np.tile([0.0, 1.5, np.nan, 2.25], 100)
    expected = from_pandas(frame().assign(price=dense), data.schema)
    for price in (pandas.arrays.SparseArray(dense), dense.astype("float16")):
        found = from_pandas(frame().assign(price=price), data.schema)
        np.testing.assert_array_equal(found.feature_vals, expected.feature_vals)
        with pytest.raises(UserError, match="'item' holds floats where"):
            from_pandas(frame().assign(item=price), FeatureSchema.model_validate(SPEC))


def test_columns_that_an_inferred_schema_leaves_out_are_named() -> None:
    with pytest.warns(UserWarning, match=r"left out 2 columns.*: nothing: constant: always empty; always: constant"):
        found = from_pandas(frame().assign(nothing=None, always=1), label="clicked")
    assert {"user_id", "item", "price"} <= {field.name for field in found.schema.spec.fields}


def test_frames_of_other_libraries(data: Any) -> None:
    arrow, polars = pytest.importorskip("pyarrow"), pytest.importorskip("polars")
    table = arrow.Table.from_pandas(frame(), preserve_index=False)
    batch = table.combine_chunks().to_batches()[0]
    np.testing.assert_array_equal(from_pandas(batch, data.schema).feature_ids, data.feature_ids)
    lazy = polars.from_arrow(table).lazy()
    np.testing.assert_array_equal(from_pandas(lazy.collect(), data.schema).feature_ids, data.feature_ids)
    huge = lazy.collect().with_columns(item=polars.Series([1] * 400, dtype=polars.Int128))
    for given, words in (
        (lazy, "got LazyFrame: collect"),
        (lazy.collect()["item"], "got LargeStringArray"),
        ({"item": ["a"]}, "got dict: make one with pandas.DataFrame"),
        (huge, "a type that Arrow lacks"),
    ):
        with pytest.raises(UserError, match=words):
            from_pandas(given, data.schema)


@pytest.mark.parametrize("kind", ["month_day_nano_interval", "seconds beyond milliseconds", "union"])
def test_a_column_of_arrow_that_no_file_can_hold_is_one_line(kind: str) -> None:
    arrow = pytest.importorskip("pyarrow")
    odd = {
        "month_day_nano_interval": lambda: arrow.array([(1, 2, 3)] * 400, arrow.month_day_nano_interval()),
        "seconds beyond milliseconds": lambda: arrow.array([2**62] * 400, arrow.timestamp("s")),
        "union": lambda: arrow.UnionArray.from_sparse(arrow.array([0] * 400, arrow.int8()), [arrow.array([1] * 400)]),
    }
    table = arrow.Table.from_pandas(frame(), preserve_index=False).append_column("odd", odd[kind]())
    with pytest.raises(UserError, match=r"^the frame has a column that cannot be stored to look at: .*; cast it$"):
        from_pandas(table, label="clicked")


def test_views_and_runs_are_read_like_plain_arrays(data: Any) -> None:
    arrow = pytest.importorskip("pyarrow")
    rows = frame()
    table = arrow.Table.from_pandas(rows, preserve_index=False)
    for name, kind in (("item", arrow.string_view()), ("tags", arrow.list_view(arrow.string_view()))):
        table = table.set_column(
            table.column_names.index(name), name, arrow.array(table.column(name).to_pylist(), kind)
        )
    users = arrow.RunEndEncodedArray.from_arrays(range(1, 401), list(rows["user id"]))
    table = table.set_column(0, "user id", users)
    np.testing.assert_array_equal(from_pandas(table, data.schema).feature_ids, data.feature_ids)


def test_ids_that_pandas_made_floats_are_refused() -> None:
    """A blank beside whole numbers turns them into floats: 7 would be the word 7.0."""
    rows = frame().assign(**{"user id": [None, *[7] * 399]})
    with pytest.raises(UserError, match="user"):
        from_pandas(rows, FeatureSchema.model_validate(SPEC))


def test_a_few_bad_rows_are_left_out_and_named(data: Any) -> None:
    rows = frame()
    rows["price"] = rows["price"].astype(object)
    rows.loc[7, "price"] = "dear"
    found = from_pandas(rows, data.schema)
    assert len(found) == 399 and [(reject.line, reject.reason) for reject in found.rejects] == [(8, "bad_number")]
    np.testing.assert_array_equal(found.feature_ids, np.delete(data.feature_ids, 7, axis=0))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss": "mse"}, "the model has its own loss"),
        ({"jit_compile": True}, "jit_compile=True"),
        ({"metrics": ["AUC"]}, "metrics= would be ignored: .*metrics.Evaluation"),
        ({"optimizer": None}, "None is not a Keras optimizer"),
        ({"optimizer": keras.optimizers.Adam(gradient_accumulation_steps=2)}, "gradient_accumulation_steps do not"),
        ({"optimizer": keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam())}, "loss scaling and"),
    ],
)
def test_compile_refuses_what_would_be_ignored(data: Any, options: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        data.model("lr").compile(**{"optimizer": "adam", **options})


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("afm", {"loss": "mse"}, "FrameData.model: loss: 'mse'"),
        ("afm", {"row_l2": "much"}, "FrameData.model: row_l2: 'much'"),
        ("afm", {"factors": -1}, "factors"),
        ("afm", {"factor": 8}, "factor"),
        ("afmm", {}, "afmm"),
    ],
)
def test_a_model_that_cannot_be_is_one_line(data: Any, name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        data.model(name, **options)
    assert len(str(caught.value).splitlines()) == 1


def test_rows_without_labels_are_no_training_data(data: Any) -> None:
    unlabelled = from_pandas(frame().drop(columns="clicked"), data.schema)
    with pytest.raises(UserError, match="supervised=True needs; its column 'clicked' was not in the frame"):
        unlabelled.as_dataset(supervised=True)
    model = data.model("lr")
    model.compile("adam")
    for method in (model.fit, model.evaluate):
        with pytest.raises(UserError, match="the rows have no labels"):
            method(unlabelled, verbose=0)
    assert model.predict(unlabelled, verbose=0)["logit"].shape == (400,)


def test_a_model_in_memory_is_exported_with_its_schema(data: Any, tmp_path: Any) -> None:
    from afm_ctr.export import export_model

    model = data.model("fm", factors=4)
    summary = export_model(model, tmp_path / "shop", schema=data.schema)
    served = tf.saved_model.load(summary.path).signatures["serving_default"]
    out = served(feature_ids=tf.constant(data.feature_ids[:5]), feature_vals=tf.constant(data.feature_vals[:5]))
    expected = model({"feature_ids": data.feature_ids[:5], "feature_vals": data.feature_vals[:5]})
    np.testing.assert_allclose(out["logit"], expected, rtol=1e-6)
    smaller = from_pandas(frame(3), FeatureSchema.model_validate(SPEC)).schema
    for options, words in (
        ({}, "needs schema="),
        ({"schema": "schema.yaml"}, "needs schema="),
        ({"schema": data.schema, "warmup": "log"}, "keeps rows of its log"),
        ({"schema": data.schema, "warmup": "some"}, "warmup must be one of made-up, log, none, got 'some'"),
        ({"schema": data.schema, "version": "2"}, "version must be a whole number, got '2'"),
        ({"schema": smaller}, "do not belong together"),
    ):
        with pytest.raises(UserError, match=words):
            export_model(model, tmp_path / "shop", **options)
    with pytest.raises(UserError, match="must be a run's folder or a CTRModel, got Sequential"):
        export_model(keras.Sequential(), tmp_path / "shop", schema=data.schema)
    with pytest.raises(UserError, match=r"afm_ctr\.export_model"):
        model.export(tmp_path / "shop")
    assert [path.name for path in (tmp_path / "shop").iterdir()] == ["1"]


def test_paths_and_configs_of_another_type_are_named(tmp_path: Any) -> None:
    with pytest.raises(UserError, match="config must be a mapping or a TrainConfig, got str; TrainConfig"):
        afm_ctr.train(tmp_path, tmp_path / "run", "train.yaml")
    for call in (lambda: afm_ctr.predict("run", "out.jsonl", inputs="a.csv"), lambda: afm_ctr.infer_schema("a.csv")):
        with pytest.raises(UserError, match=r"inputs must be a list of paths and globs, got the text 'a\.csv'"):
            call()


def test_what_is_shown_of_rows_in_memory_is_one_line() -> None:
    data = from_pandas(frame(50), FeatureSchema.model_validate(SPEC))
    assert repr(data) == f"FrameData('shop', 50 rows, 4 fields, 6 slots, {data.schema.feature_size} ids)"


def test_what_a_frame_lacks_is_said_of_the_frame() -> None:
    """The schema is inferred by way of a file, whose name says nothing to anybody."""
    with pytest.raises(UserError, match=r"^label=nope: the frame has no such column; it has "):
        from_pandas(frame(50), label="nope")
    with pytest.raises(UserError, match=r"^the frame: no column is fit for a feature: "):
        from_pandas(frame(1)[["clicked", "item"]], label="clicked")
    numbered = frame(200)[["clicked", "item"]].set_axis([0, 1], axis=1)
    assert from_pandas(numbered, label=0).labels is not None


@pytest.mark.parametrize("kind", ["interval", "period"])
def test_columns_of_pandas_own_types_are_refused(kind: str) -> None:
    rows = frame(200).drop(columns=["w"])
    days = pandas.Series(pandas.period_range("2020", periods=200, freq="D"))
    rows["bin"] = pandas.cut(rows["price"].fillna(0), 5) if kind == "interval" else days
    with pytest.raises(UserError, match=r"column 'bin' is of type pandas.(interval|period), which no cell can have"):
        from_pandas(rows, label="clicked")


def test_a_model_says_that_a_frame_has_no_ids() -> None:
    data = from_pandas(frame(50), FeatureSchema.model_validate(SPEC))
    model = data.model("lr")
    model.compile("adam")
    for use in (model.fit, model.evaluate, model.predict):
        with pytest.raises(UserError, match=r"a DataFrame has no ids yet: give the data of afm_ctr.from_pandas"):
            use(frame(5))


def test_rows_of_another_schema_are_one_line_in_any_order_of_calls(data: Any) -> None:
    narrow = from_pandas(frame()[["user id", "price", "clicked"]], label="clicked")
    assert narrow.schema.num_slots != data.schema.num_slots
    model = data.model("afm", factors=2)
    model.compile("adam")
    model.predict(data.take(slice(0, 8)), verbose=0)
    for use in (model.predict, model.evaluate, model.fit):
        with pytest.raises(UserError, match=r"the rows have \d+ slots and \d+ ids, the model \d+ and"):
            use(narrow, verbose=0)
    with pytest.raises(UserError, match=r"feature_ids must be \[batch, \d\]"):  # Keras has traced another width
        model.predict(narrow.as_dataset(), verbose=0)


def test_frames_are_compared_by_identity(data: Any) -> None:
    assert data == data and data != data.take(slice(None))


def test_a_forked_process_says_that_tensorflow_stayed_behind(data: Any) -> None:
    rows, model = frame(5), data.model("lr")
    pid = os.fork()
    if not pid:  # a child that waited for ever would be killed by the alarm
        signal.alarm(20)
        said = []
        for use in (lambda: from_pandas(rows, data.schema), lambda: model.predict(data)):
            try:
                use()
            except UserError as error:
                said.append("was forked from one that had used TensorFlow" in str(error))
        os._exit(0 if said == [True, True] else 1)
    assert os.waitpid(pid, 0)[1] == 0
