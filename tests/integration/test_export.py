"""The SavedModel: its signatures, what they refuse, what lies beside it, and that it runs by itself."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from afm_ctr.errors import UserError
from afm_ctr.export import clean_process, export_model, validate_export
from afm_ctr.export.columns import column_forms
from afm_ctr.features import FeatureTransform
from afm_ctr.records import serialize_examples
from afm_ctr.sample_rows import SAMPLE_FILE, made_up_rows, save_samples
from serving.cell_text import ColumnForm
from tests.runs import every_kind, raw_rows, write_run

ROWS = 64


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Schema, model, summary and the loaded export, whose run is gone."""
    folder = tmp_path_factory.mktemp("export")
    schema = every_kind()
    model = write_run(folder / "run", schema)
    summary = export_model(folder / "run", folder / "models" / "ads")
    shutil.rmtree(folder / "run")
    return schema, model, summary, tf.saved_model.load(summary.path)


@pytest.fixture(scope="module")
def encoded(served):
    raw = {name: tf.constant(cells) for name, cells in raw_rows(ROWS).items()}
    found = FeatureTransform(served[0])(raw)
    return raw, (found.feature_ids, found.feature_vals, found.bad)


def call(loaded, signature, **inputs):
    return {name: value.numpy() for name, value in loaded.signatures[signature](**inputs).items()}


def test_signatures_are_those_of_the_contract(served):
    schema, _, summary, loaded = served
    slots = schema.num_slots
    assert set(loaded.signatures) == {"serving_default", "examples", "raw", "explain"} == set(summary.signatures)
    inputs = {
        name: {key: (spec.dtype.name, spec.shape.as_list()) for key, spec in f.structured_input_signature[1].items()}
        for name, f in loaded.signatures.items()
    }
    by_ids = {"feature_ids": ("int64", [None, slots]), "feature_vals": ("float32", [None, slots])}
    assert inputs["serving_default"] == inputs["explain"] == by_ids
    assert inputs["examples"] == {"examples": ("string", [None])}
    assert inputs["raw"] == {name: ("string", [None]) for name in schema.raw_columns}
    outputs = {
        name: {key: (spec.dtype.name, spec.shape.as_list()) for key, spec in f.structured_outputs.items()}
        for name, f in loaded.signatures.items()
    }
    bad = {"bad_cells": ("int32", [None])}
    scores = {"probability": ("float32", [None]), "logit": ("float32", [None]), **bad}
    assert outputs["serving_default"] == outputs["examples"] == outputs["raw"] == scores
    assert outputs["explain"] == {"attention": ("float32", [None, len(schema.pairs)]), **bad}
    # A server with request batching cuts outputs by the first dimension, so even an unknown one must be there.
    message = saved_model_message(summary.path)
    for signature in message.meta_graphs[0].signature_def.values():
        if signature.outputs and signature.inputs:
            assert signature.method_name == "tensorflow/serving/predict"


def test_the_raw_signature_says_what_a_column_takes(served):
    schema, _, summary, _ = served
    raw = saved_model_message(summary.path).meta_graphs[0].signature_def["raw"].inputs
    found = {name: ColumnForm.from_name(info.tensor_shape.dim[0].name) for name, info in raw.items()}
    assert found == column_forms(schema) and {form.takes_floats for form in found.values()} == {True, False}


def test_every_signature_gives_the_score_of_the_model(served, encoded):
    schema, model, _, loaded = served
    raw, (ids, vals, bad) = encoded
    logit = model({"feature_ids": ids, "feature_vals": vals}).numpy()
    assert np.std(logit) > 0.5, "the weights are far from zero"
    examples = serialize_examples(ids.numpy(), vals.numpy(), None, None, None, [b""] * ROWS)
    by_ids = call(loaded, "serving_default", feature_ids=ids, feature_vals=vals)
    by_examples = call(loaded, "examples", examples=tf.constant(examples))
    by_raw = call(loaded, "raw", **raw)
    for outputs in (by_ids, by_examples, by_raw):
        np.testing.assert_allclose(outputs["logit"], logit, atol=1e-6)
        np.testing.assert_allclose(outputs["probability"], 1 / (1 + np.exp(-logit)), atol=1e-6)
    np.testing.assert_array_equal(by_raw["bad_cells"], bad.numpy().sum(1))
    assert by_raw["bad_cells"].max() >= 2 and by_raw["bad_cells"].min() == 0
    attention = call(loaded, "explain", feature_ids=ids, feature_vals=vals)["attention"]
    present = ids.numpy() != 0
    pairs = schema.pairs
    both = present[:, pairs[:, 0]] & present[:, pairs[:, 1]]
    assert np.all(attention[~both] == 0)
    np.testing.assert_allclose(attention.sum(1), both.any(1).astype(float), atol=1e-6)


@pytest.mark.parametrize("rows", [0, 1])
def test_no_rows_and_one_row(served, encoded, rows):
    raw, (ids, vals, _) = encoded
    loaded = served[3]
    examples = serialize_examples(ids.numpy(), vals.numpy(), None, None, None, [b""] * ROWS)
    few = {"feature_ids": ids[:rows], "feature_vals": vals[:rows]}
    answers = [
        call(loaded, "serving_default", **few),
        call(loaded, "examples", examples=tf.constant(examples[:rows], tf.string)),
        call(loaded, "raw", **{name: cells[:rows] for name, cells in raw.items()}),
        call(loaded, "explain", **few),
    ]
    for outputs in answers:
        assert all(len(value) == rows for value in outputs.values())


@pytest.mark.parametrize(
    ("wrong_id", "wrong_value"), [(-1, 1.0), (None, 1.0), (1 << 62, 1.0), (2, math.nan), (2, -math.inf)]
)
def test_an_impossible_slot_is_missing_and_counted_and_changes_no_other_row(served, encoded, wrong_id, wrong_value):
    _, (ids, vals, _) = encoded
    bad_ids, bad_vals = ids.numpy(), vals.numpy()
    bad_ids[3, 1] = served[0].feature_size if wrong_id is None else wrong_id
    bad_vals[3, 1] = wrong_value
    missing = ids.numpy()
    missing[3, 1] = 0
    counted = np.zeros(ROWS, np.int32)
    counted[3] = 1
    for signature in ("serving_default", "explain", "examples"):
        if signature == "examples":
            inputs, wanted = (
                {"examples": tf.constant([example(*row) for row in zip(i.tolist(), v.tolist(), strict=True)])}
                for i, v in ((bad_ids, bad_vals), (missing, vals.numpy()))
            )
        else:
            inputs = {"feature_ids": tf.constant(bad_ids), "feature_vals": tf.constant(bad_vals)}
            wanted = {"feature_ids": tf.constant(missing), "feature_vals": vals}
        found, expected = call(served[3], signature, **inputs), call(served[3], signature, **wanted)
        np.testing.assert_array_equal(found.pop("bad_cells"), counted)
        assert not expected.pop("bad_cells").any()
        for name, array in expected.items():
            assert found[name].tobytes() == array.tobytes(), (signature, name)


def test_no_bits_in_a_row_change_another_row(served, encoded):
    """Garbage of every kind in every second row: huge numbers, NaNs, ids of 64 bits."""
    _, (ids, vals, _) = encoded
    rng = np.random.default_rng(0)
    shape = ids[1::2].shape
    garbage = [vals.numpy(), vals.numpy()]
    garbage[0][1::2] = rng.integers(0, 1 << 32, shape, np.uint32).view(np.float32)
    garbage[1][1::2] = 0
    odd_ids, no_ids = ids.numpy(), ids.numpy()
    odd_ids[1::2] = np.where(rng.random(shape) < 0.5, rng.integers(-(1 << 63), (1 << 63) - 1, shape), odd_ids[1::2])
    no_ids[1::2] = 0
    for signature in ("serving_default", "explain"):
        found = call(served[3], signature, feature_ids=tf.constant(odd_ids), feature_vals=tf.constant(garbage[0]))
        clean = call(served[3], signature, feature_ids=tf.constant(no_ids), feature_vals=tf.constant(garbage[1]))
        assert (found["bad_cells"][1::2] > 0).all()
        for name in found:
            assert found[name][::2].tobytes() == clean[name][::2].tobytes(), (signature, name)


def test_the_value_of_an_absent_slot_is_not_read(served):
    slots = served[0].num_slots
    outputs = call(
        served[3],
        "serving_default",
        feature_ids=tf.zeros([2, slots], tf.int64),
        feature_vals=tf.constant(np.array([[math.nan] * slots, [0.0] * slots], np.float32)),
    )
    assert outputs["bad_cells"].tolist() == [0, 0]
    assert outputs["logit"][0] == outputs["logit"][1]


def test_inputs_of_different_length_are_not_broadcast(served, encoded):
    raw, (ids, vals, _) = encoded
    with pytest.raises(tf.errors.InvalidArgumentError, match="same number of rows"):
        call(served[3], "serving_default", feature_ids=ids, feature_vals=vals[:1])
    shorter = {name: cells[:1] if name == "site" else cells for name, cells in raw.items()}
    with pytest.raises(tf.errors.InvalidArgumentError, match="same number of rows"):
        call(served[3], "raw", **shorter)


def example(ids, vals, **more):
    message = tf.train.Example()
    for name, value in more.items():
        message.features.feature[name].bytes_list.value.append(value)
    if ids is not None:
        message.features.feature["feature_ids"].int64_list.value.extend(ids)
    if vals is not None:
        message.features.feature["feature_vals"].float_list.value.extend(vals)
    return message.SerializeToString()


def test_an_example_that_does_not_parse_is_missing_and_changes_no_other_row(served, encoded):
    _, (ids, vals, _) = encoded
    slots = served[0].num_slots
    one, numbers = ids.numpy()[0].tolist(), vals.numpy()[0].tolist()
    good = example(one, numbers)
    swapped = tf.train.Example()
    swapped.features.feature["feature_ids"].float_list.value.extend(numbers)
    swapped.features.feature["feature_vals"].int64_list.value.extend(one)
    bad = [
        b"",
        b"no example",
        b"\xff\xfe",
        good[:-3],
        good + b"\x0a",
        example(None, numbers),
        example(one, None),
        example([*one, 1], numbers),
        example(one, numbers[1:]),
        example([], []),
        swapped.SerializeToString(),
        b"\x0a" + b"\xff" * 200,
        b"x" * 100_000,
    ]
    # Another form than serializers write, and still an Example: with a field that nobody knows.
    unusual = good + b"\x7a\x01x"
    fine = call(served[3], "examples", examples=tf.constant([good] * (len(bad) + 2)))
    mixed = call(served[3], "examples", examples=tf.constant([good, *bad, unusual]))
    nothing = call(
        served[3],
        "serving_default",
        feature_ids=tf.zeros([1, slots], tf.int64),
        feature_vals=tf.zeros([1, slots], tf.float32),
    )
    assert mixed["bad_cells"].tolist() == [0, *[slots] * len(bad), 0]
    for name in ("logit", "probability"):
        for row in (0, -1):
            assert mixed[name][row].tobytes() == fine[name][row].tobytes()
        np.testing.assert_allclose(mixed[name][1:-1], nothing[name][0], rtol=1e-6)


def test_graph_holds_stock_ops_and_no_weights(served):
    _, model, summary, _ = served
    graph = saved_model_message(summary.path).meta_graphs[0].graph_def
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    ops = {node.op for node in nodes}
    functions = {function.signature.name for function in graph.library.function}
    assert ops - functions <= set(dir(tf.raw_ops))
    assert not {op for op in ops if "PyFunc" in op or "Horovod" in op}
    largest = max(math.prod(variable.shape) for variable in model.trainable_variables)
    for node in nodes:
        if node.op == "Const" and node.attr["value"].tensor.dtype == tf.float32.as_datatype_enum:
            assert tf.make_ndarray(node.attr["value"].tensor).size < largest, node.name
    loaded = served[3]
    names = [name for name, _ in tf.train.list_variables(f"{summary.path}/variables/variables")]
    assert loaded is not None and sum("VARIABLE_VALUE" in name for name in names) == len(model.weights)


def test_pairs_and_warm_up_lie_beside_the_graph(served):
    from tensorflow_serving.apis import prediction_log_pb2

    schema, model, summary, loaded = served
    assert summary.warmup == "made-up"
    extra = f"{summary.path}/assets.extra"
    told = json.loads(Path(extra, "pairs.json").read_text(encoding="utf-8"))
    assert [pair["name"] for pair in told["pairs"]] == schema.pair_names
    assert [pair["slots"] for pair in told["pairs"]] == schema.pairs.tolist()
    seen = set()
    for record in tf.data.TFRecordDataset(f"{extra}/tf_serving_warmup_requests"):
        log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
        request = log.predict_log.request
        assert request.model_spec.name == "ads"
        inputs = {name: tf.constant(tf.make_ndarray(tensor)) for name, tensor in request.inputs.items()}
        outputs = call(loaded, request.model_spec.signature_name, **inputs)
        rows = len(next(iter(outputs.values())))
        seen.add((request.model_spec.signature_name, rows))
        if request.model_spec.signature_name == "raw":
            assert not outputs["bad_cells"].any(), "made-up rows are rows that the schema takes"
    assert seen == {(name, rows) for name in summary.signatures for rows in (1, 16)}
    assert model is not None


def test_warm_up_takes_rows_of_the_log_only_where_they_are_asked_for(tmp_path):
    schema = every_kind()
    write_run(tmp_path / "run", schema, {"name": "lr"})
    rows = [{name: cells[row] for name, cells in raw_rows(3).items()} for row in range(3)]
    save_samples(tmp_path / "run", rows)

    def holds_a_raw_value(summary):
        return rows[0]["site"] in Path(summary.path, "assets.extra", "tf_serving_warmup_requests").read_bytes()

    assert not holds_a_raw_value(export_model(tmp_path / "run", tmp_path / "models"))
    summary = export_model(tmp_path / "run", tmp_path / "models", warmup="log")
    assert holds_a_raw_value(summary) and "warm-up with rows of the log" in str(summary)
    (tmp_path / "run" / SAMPLE_FILE).write_text("{broken")
    with pytest.raises(UserError, match=r"--warmup log: .* holds no rows of the log"):
        export_model(tmp_path / "run", tmp_path / "models", warmup="log")
    assert sorted(entry.name for entry in (tmp_path / "models").iterdir()) == ["1", "2"]
    unwarmed = export_model(tmp_path / "run", tmp_path / "models", warmup="none")
    assert not Path(unwarmed.path, "assets.extra", "tf_serving_warmup_requests").exists()
    assert validate_export(unwarmed.path, tmp_path / "run", inspect=clean_process.inspect).failed is None


def test_versions_count_up_and_are_never_replaced(tmp_path):
    write_run(tmp_path / "run", every_kind(), {"name": "lr"})
    base = tmp_path / "models"
    first = export_model(tmp_path / "run", base)
    assert (first.version, first.path) == (1, str(base / "1"))
    assert "explain" not in first.signatures, "LR has no attention"
    assert export_model(tmp_path / "run", base, version=7).version == 7
    assert export_model(tmp_path / "run", base).version == 8
    with pytest.raises(UserError, match="version 7 exists"):
        export_model(tmp_path / "run", base, version=7)
    assert sorted(entry.name for entry in base.iterdir()) == ["1", "7", "8"]
    with pytest.raises(UserError, match="no training run"):
        export_model(tmp_path / "nothing", base)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        export_model(tmp_path / "run", tmp_path / "file")


def test_correction_for_thinned_negatives_is_added_once(tmp_path):
    plain, thinned = every_kind(), every_kind(negative_sampling={"rate": 0.1, "correct": "logit"})
    logits = []
    for number, schema in enumerate((plain, thinned)):
        write_run(tmp_path / f"run{number}", schema, {"name": "fm", "factors": 2})
        summary = export_model(tmp_path / f"run{number}", tmp_path / f"models{number}")
        raw = {name: tf.constant(cells) for name, cells in raw_rows(8).items()}
        logits.append(call(tf.saved_model.load(summary.path), "raw", **raw)["logit"])
    np.testing.assert_allclose(logits[1] - logits[0], math.log(0.1), atol=1e-6)
    assert summary.logit_offset == pytest.approx(math.log(0.1))


def test_squared_loss_is_served_as_score(tmp_path):
    write_run(tmp_path / "run", every_kind(), {"name": "fm", "factors": 2}, loss="squared")
    summary = export_model(tmp_path / "run", tmp_path / "models")
    assert summary.signatures["serving_default"] == ["bad_cells", "logit", "score"]
    raw = {name: tf.constant(cells) for name, cells in raw_rows(8).items()}
    outputs = call(tf.saved_model.load(summary.path), "raw", **raw)
    np.testing.assert_array_equal(outputs["score"], outputs["logit"])


def test_made_up_rows_are_read_without_a_bad_cell():
    schema = every_kind()
    rows = made_up_rows(schema, 9)
    columns = {name: tf.constant([row[name] for row in rows]) for name in schema.raw_columns}
    encoded = FeatureTransform(schema)(columns)
    assert not encoded.bad.numpy().any()
    assert len(rows) == 9 and not any(rows[-1].values())
    assert (encoded.feature_ids.numpy()[:-1] != 0).all(axis=1).any(), "some row fills every slot"


def test_runs_without_this_package_and_moves_with_its_vocabularies(served, encoded, tmp_path):
    _, model, summary, _ = served
    raw, (ids, vals, _) = encoded
    moved = tmp_path / "elsewhere"
    shutil.copytree(summary.path, moved)
    np.savez(tmp_path / "raw.npz", **{name: cells.numpy().astype("S") for name, cells in raw.items()})
    code = (
        "import sys, numpy as np, tensorflow as tf\n"
        "loaded = tf.saved_model.load(sys.argv[1])\n"
        "raw = {name: tf.constant(cells.tolist()) for name, cells in np.load(sys.argv[2]).items()}\n"
        "print('logit', *loaded.signatures['raw'](**raw)['logit'].numpy().tolist())\n"
        "assert not [name for name in sys.modules if name.startswith(('afm_ctr', 'serving', 'horovod'))]\n"
    )
    command = [sys.executable, "-c", code, str(moved), str(tmp_path / "raw.npz")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    logit = np.array(done.stdout.split("logit", 1)[1].split(), float)
    np.testing.assert_allclose(logit, model({"feature_ids": ids, "feature_vals": vals}).numpy(), atol=1e-6)


def saved_model_message(path):
    from tensorflow.core.protobuf import saved_model_pb2

    with open(f"{path}/saved_model.pb", "rb") as file:
        return saved_model_pb2.SavedModel.FromString(file.read())


@pytest.mark.parametrize("float16_tables", [False, True])
def test_a_table_written_in_blocks_is_the_same_model(tmp_path, monkeypatch, float16_tables):
    schema = every_kind()
    write_run(tmp_path / "run", schema)
    monkeypatch.setattr("afm_ctr.training.stored_table._BLOCK_BYTES", 400)
    summaries = [
        export_model(tmp_path / "run", tmp_path / "models", float16_tables=float16_tables, largest_table_mb=largest)
        for largest in (1, 0.001)
    ]
    assert [summary.streamed for summary in summaries] == [False, True]
    assert " pairs, written block by block; " in str(summaries[1]) and summaries[0].half == summaries[1].half
    found = dict(tf.train.list_variables(f"{summaries[1].path}/variables/variables"))
    assert found["table/columns/vectors/.ATTRIBUTES/VARIABLE_VALUE"] == [schema.feature_size, 4]
    files = {path.name for path in Path(summaries[1].path, "variables").iterdir()}
    blocks = -(-schema.feature_size // (400 // 32)) + -(-schema.feature_size // (400 // 20))
    assert files == {"variables.index", *(f"variables.data-{n:05d}-of-{blocks + 1:05d}" for n in range(blocks + 1))}
    whole, streamed = (tf.saved_model.load(summary.path) for summary in summaries)
    raw = {name: tf.constant(cells) for name, cells in raw_rows(ROWS).items()}
    ids = tf.constant(np.random.default_rng(3).integers(0, schema.feature_size, [ROWS, schema.num_slots]))
    inputs = {"feature_ids": ids, "feature_vals": tf.ones(ids.shape)}
    for rows in (ROWS, 0):
        few = {name: tensor[:rows] for name, tensor in inputs.items()}
        cells = {name: tensor[:rows] for name, tensor in raw.items()}
        for signature, given in (("serving_default", few), ("explain", few), ("raw", cells)):
            wanted = call(whole, signature, **given)
            for name, array in call(streamed, signature, **given).items():
                np.testing.assert_allclose(array, wanted[name], rtol=0, atol=1e-6, err_msg=f"{signature} {name}")
    checked = validate_export(summaries[1].path, tmp_path / "run", inspect=clean_process.inspect)
    assert checked.failed is None, checked
