"""AFM, FM and LR around their table: logits, losses, one step, penalties, and what a model tells about its pairs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import keras
import numpy as np
import oracle
import pytest
import tensorflow as tf

from afm_ctr import native, optimizers
from afm_ctr.distributed import SingleWorld, wrap_optimizer
from afm_ctr.errors import UserError
from afm_ctr.interactions import uses_fused
from afm_ctr.models import CTRModel

needs_library = pytest.mark.skipif(bool(native.load().reason), reason=f"the ops: {native.load().reason}")
SLOTS, FEATURES = 4, 9
PAIRS = oracle.all_pairs(SLOTS)
IDS = np.array([[1, 2, 3, 4], [5, 0, 7, 5], [0, 0, 6, 0], [0, 0, 0, 0], [8, 8, 1, 0]], np.int64)
LABELS = np.array([1, 0, 1, 0, 1], np.float32)


def batch(dtype: Any = np.float32, **more: Any) -> dict[str, tf.Tensor]:
    """Five rows; an absent slot holds a number that must not be read, a present one holds 0."""
    values = np.random.default_rng(2).normal(size=IDS.shape)
    values[0, 1] = 0.0
    values[IDS == 0] = np.nan
    columns = {"feature_ids": IDS, "feature_vals": values.astype(dtype), "row": np.arange(5), "label": LABELS}
    columns["key"] = np.array([b"a", b"b", b"c", b"d", b"e"])  # the reader's batches hold more than a model reads
    return {name: tf.constant(value) for name, value in {**columns, **more}.items()}


def model(name: str = "afm", options: dict[str, Any] | None = None, **arguments: Any) -> CTRModel:
    if options is None:
        options = {"afm": {"factors": 3, "attention": 2}, "fm": {"factors": 3}, "lr": {}}[name]
    return CTRModel(name, options, FEATURES, SLOTS, arguments.pop("pairs", PAIRS), **arguments)


def give(afm: CTRModel, seed: int = 0) -> dict[str, np.ndarray]:
    """Set a model's variables to those of the oracle."""
    parameters = oracle.random_parameters(np.random.default_rng(seed), FEATURES, 3, 2)
    for name, variable in variables_of(afm).items():
        variable.assign(parameters[name].reshape(variable.shape))
    return parameters


def variables_of(afm: CTRModel) -> dict[str, keras.Variable]:
    found = {"w0": afm.bias, "w": afm.table.columns["linear"]}
    if "vectors" in afm.table.columns:
        found["v"] = afm.table.columns["vectors"]
    for name in "Wbhp":
        if hasattr(afm.interaction, name):
            found[name] = getattr(afm.interaction, name)
    return found


def compiled(afm: CTRModel, name: str = "sgd", rate: float = 0.5) -> CTRModel:
    optimizer = wrap_optimizer(optimizers.build(name, learning_rate=rate), SingleWorld())
    afm.compile(optimizer=optimizer, jit_compile=False)
    return afm


def clean(values: tf.Tensor) -> np.ndarray:
    return np.where(IDS == 0, 0.0, values.numpy())


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("scale", [False, True])
def test_afm_logits_and_all_gradients_equal_the_oracle(training: bool, scale: bool) -> None:
    afm = model(options={"factors": 3, "attention": 2, "scale_by_pairs": scale}, dtype="float64")
    parameters = give(afm)
    rows = batch(np.float64)
    upstream = np.linspace(-1, 2, 5)
    expected, _, gradients = oracle.afm(parameters, IDS, clean(rows["feature_vals"]), PAIRS, upstream, scale)
    variables = variables_of(afm)
    with tf.GradientTape() as tape:
        logits = afm(rows, training=training)
        total = tf.reduce_sum(logits * upstream)
    np.testing.assert_allclose(logits, expected, rtol=1e-12)
    found = tape.gradient(total, [variable.value for variable in variables.values()])
    for name, gradient in zip(variables, found, strict=True):
        dense = tf.convert_to_tensor(gradient).numpy().reshape(gradients[name].shape)
        np.testing.assert_allclose(dense, gradients[name], rtol=1e-10, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("pairs", [PAIRS, PAIRS[1:], PAIRS[:2]])
def test_fm_and_lr_equal_their_formulas(pairs: np.ndarray) -> None:
    rows = batch(np.float64)
    fm = model("fm", pairs=pairs, dtype="float64")
    parameters = give(fm)
    values = clean(rows["feature_vals"])
    np.testing.assert_allclose(fm(rows), oracle.fm(parameters, IDS, values, pairs), rtol=1e-12)
    lr = model("lr", dtype="float64")
    parameters = give(lr)
    np.testing.assert_allclose(lr(rows), parameters["w0"] + (parameters["w"][IDS] * values).sum(1), rtol=1e-12)
    assert list(lr.table.columns) == ["linear"]


def test_uniform_attention_with_the_scale_is_fm() -> None:
    afm = model(options={"factors": 3, "attention": 2, "scale_by_pairs": True})
    give(afm)
    afm.interaction.h.assign(np.zeros(2))
    afm.interaction.p.assign(np.ones(3))
    fm = model("fm")
    give(fm)
    for training in (False, True):
        np.testing.assert_allclose(afm(batch(), training=training), fm(batch()), rtol=1e-5, atol=1e-5)


def test_losses_by_hand() -> None:
    logits = tf.constant([0.0, 2.0, -200.0])
    labels = tf.constant([1.0, 0.0, 1.0])
    log = model("lr")
    np.testing.assert_allclose(log.example_loss(labels, logits), [np.log(2), np.log1p(np.exp(2)), 200.0], rtol=1e-6)
    np.testing.assert_allclose(log.predictions(logits)[:2], [0.5, 1 / (1 + np.exp(-2))], rtol=1e-6)
    squared = model("lr", loss="squared")
    np.testing.assert_allclose(squared.example_loss(labels, logits), [1.0, 9.0, 201.0**2], rtol=1e-6)
    assert (log.output_name, squared.output_name) == ("probability", "score")
    real = model("lr", loss="squared", label_kind="real")
    np.testing.assert_allclose(real.example_loss(tf.constant([4.0, 0.5, 0.0]), logits)[:2], [16.0, 2.25], rtol=1e-6)
    with pytest.raises(UserError, match="log loss needs binary labels"):
        model("lr", label_kind="real")
    with pytest.raises(UserError, match="'log' or 'squared'"):
        model("lr", loss="hinge")


def test_a_step_is_the_weighted_mean_and_padding_is_not_read() -> None:
    lr = compiled(model("lr"))
    weight = np.array([1.0, 3.0, 0.0, 0.5, 0.0], np.float32)
    label = np.array([1.0, 0.0, np.nan, 1.0, np.nan], np.float32)
    rows = batch(weight=weight, label=label)
    logs = tf.function(lr.train_step, autograph=False)(rows)
    residual = 0.5 - np.array([1.0, 0.0, 0.0, 1.0, 0.0])
    expected = np.zeros(FEATURES)
    np.add.at(expected, IDS, (weight * residual)[:, None] * clean(rows["feature_vals"]))
    np.testing.assert_allclose(lr.table.columns["linear"].numpy()[:, 0], -0.5 * expected / 4.5, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(lr.bias.numpy(), -0.5 * (weight * residual).sum() / 4.5, rtol=1e-6)
    np.testing.assert_allclose(float(logs["loss"]), np.log(2), rtol=1e-6)
    assert float(lr.loss_tracker.weight.numpy()) == 4.5
    np.testing.assert_allclose(lr.loss_tracker.numerator.numpy(), 4.5 * np.log(2), rtol=1e-6)


@pytest.mark.parametrize("more", [{}, {"mark_rows": True}, {"row_l2_per": "step"}], ids=str)
def test_a_step_of_weight_zero_changes_nothing(more: dict[str, Any]) -> None:
    afm = compiled(model(row_l2=0.1, **more), "adam")
    before = [variable.numpy() for variable in afm.variables]
    tf.function(afm.train_step, autograph=False)(batch(weight=np.zeros(5, np.float32)))
    assert int(afm.optimizer.iterations) == 0
    for kept, variable in zip(before, afm.variables, strict=True):
        np.testing.assert_array_equal(variable.numpy(), kept, err_msg=variable.path)


def test_a_training_step_waits_for_nothing_on_the_host() -> None:
    """No predicate, no assertion, and no int32 tensor that grows with the batch: a GPU keeps those on the host."""
    afm = compiled(model(row_l2=0.1, row_l2_per="step"), "adam")
    rows = 97
    spec = {name: tf.TensorSpec([rows, *value.shape[1:]], value.dtype) for name, value in batch().items()}
    graph = tf.function(afm.train_step, autograph=False).get_concrete_function(spec).graph
    kinds = {op.type for op in graph.get_operations()}
    assert not kinds & {"If", "StatelessIf", "Assert", "PyFunc", "EagerPyFunc"}
    large = [
        op.name
        for op in graph.get_operations()
        for output in op.outputs
        if output.dtype == tf.int32 and output.shape.rank and (output.shape[0] is None or output.shape[0] >= rows)
    ]
    assert large == []


def test_ids_that_no_reader_has_checked_are_checked_in_the_step() -> None:
    fm = compiled(model("fm"))
    foreign = {name: value for name, value in batch(feature_ids=np.where(IDS == 2, FEATURES, IDS)).items()}
    del foreign["row"]
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"a feature id is outside \[0, "):
        tf.function(fm.train_step, autograph=False)(foreign)


def test_penalties_count_once_a_row_and_once_a_step() -> None:
    afm = model(options={"factors": 3, "attention": 2, "attention_l2": 0.25}, row_l2={"vectors": 0.125})
    parameters = give(afm)
    variables = list(variables_of(afm).values())
    rows = tf.constant([1, 5], tf.int64)
    slices = {name: tf.IndexedSlices(tf.ones([2, d]), rows) for name, d in (("w", 1), ("v", 3))}
    gradients = [slices[name] if name in slices else tf.ones(v.shape) for name, v in variables_of(afm).items()]
    for given in (variables, [variable.value for variable in variables]):
        found = dict(zip(variables_of(afm), afm.penalize(gradients, given), strict=True))
        np.testing.assert_allclose(found["v"].values, 1 + 2 * 0.125 * parameters["v"][[1, 5]], rtol=1e-6)
        np.testing.assert_allclose(found["w"].values, np.ones((2, 1)))
        np.testing.assert_allclose(found["W"], 1 + 2 * 0.25 * parameters["W"], rtol=1e-6)
        for name in ("w0", "b", "h", "p"):
            assert np.all(found[name].numpy() == 1), name
    with pytest.raises(UserError, match=r"row_l2: the model has no column 'v'; it has: linear, vectors"):
        model(row_l2={"v": 0.1})
    with pytest.raises(UserError, match="row_l2"):
        model(row_l2=-1.0)


def test_row_l2_of_a_dense_gradient_is_that_of_the_rows_that_it_moves() -> None:
    afm = model(row_l2=0.125)
    vectors = give(afm)["v"]
    gradient = np.zeros((FEATURES, 3), np.float32)
    gradient[[2, 5], [0, 2]] = 1.0, -2.0
    (found,) = afm.penalize([tf.constant(gradient)], [afm.table.columns["vectors"]])
    expected = gradient.astype(np.float64)
    expected[[2, 5]] += 2 * 0.125 * vectors[[2, 5]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_row_l2_per_step_makes_up_for_the_steps_since_a_touch() -> None:
    """Weights alone, under SGD: 0.5·2λ·row for each step since the last touch, one for the first touch."""
    lr = compiled(model("lr", row_l2=0.01, row_l2_per="step"))
    weights = np.linspace(-1, 1, FEATURES, dtype=np.float32)
    weights[0] = 0
    lr.table.columns["linear"].assign(weights[:, None])
    step, seen, count = tf.function(lr.train_step, autograph=False), np.zeros(FEATURES, int), 0
    for ids, weight in (([1, 2], 1.0), ([2, 3], 1.0), ([3, 0], 0.0), ([1, 3], 1.0), ([1, 2], 1.0)):
        rows = {"feature_ids": tf.constant([[*ids, 0, 0]], tf.int64), "feature_vals": tf.zeros([1, SLOTS])}
        step({**rows, "label": tf.ones(1), "weight": tf.constant([weight]), "row": tf.range(1, dtype=tf.int64)})
        if not weight:
            continue  # a step of weight 0 is none
        count += 1
        for row in filter(None, ids):
            weights[row] -= 0.5 * 2 * 0.01 * (count - seen[row] if seen[row] else 1) * weights[row]
            seen[row] = count
        np.testing.assert_allclose(lr.table.columns["linear"].numpy()[:, 0], weights, rtol=1e-5)
    assert lr.table.last_seen is not None
    np.testing.assert_array_equal(lr.table.last_seen.numpy(), seen)


def test_row_l2_per_step_of_a_dense_gradient_is_that_of_slices() -> None:
    afm = compiled(model(row_l2={"vectors": 0.125}, row_l2_per="step"))
    give(afm)
    afm.optimizer.build(afm.trainable_variables)
    afm.optimizer.iterations.assign(6)
    assert afm.table.last_seen is not None
    afm.table.last_seen.assign([0, 0, 3, 6, 0, 1, 0, 0, 2])
    gradient = np.zeros((FEATURES, 3), np.float32)
    gradient[[2, 4, 5]] = 1.0, -2.0, 0.5
    vectors = afm.table.columns["vectors"]
    expected = gradient[[2, 4, 5]] + 2 * 0.125 * np.array([[4.0], [1.0], [6.0]]) * vectors.numpy()[[2, 4, 5]]
    slices = tf.IndexedSlices(tf.gather(gradient, [2, 4, 5]), tf.constant([2, 4, 5], tf.int64))
    (sparse,), (dense,) = (afm.penalize([one], [vectors]) for one in (slices, tf.constant(gradient)))
    np.testing.assert_allclose(sparse.values, expected, rtol=1e-6)
    np.testing.assert_allclose(dense.numpy()[[2, 4, 5]], expected, rtol=1e-6)
    assert not dense.numpy()[[0, 1, 3, 6, 7, 8]].any()
    with pytest.raises(UserError, match="row_l2_per must be 'touch' or 'step', got 'epoch'"):
        model(row_l2_per="epoch")


@pytest.mark.parametrize("name", optimizers.names())
@pytest.mark.parametrize("form", ["tensorflow", pytest.param("native", marks=needs_library)])
def test_a_step_merges_its_ids_once(name: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFM_CTR_TABLE", form)
    afm = compiled(model(row_l2=0.1), name)
    afm.optimizer.build(afm.trainable_variables)
    step = tf.function(afm.train_step, autograph=False).get_concrete_function(batch(weight=np.ones(5, np.float32)))
    graph = step.graph.as_graph_def()
    kinds = [node.op for part in (graph.node, *(f.node_def for f in graph.library.function)) for node in part]
    assert "UnsortedSegmentSum" not in kinds
    ours = form == "native"
    assert (kinds.count("AfmCtrMerge"), kinds.count("Unique")) == ((1, 0) if ours else (0, 1))
    # Of each of the two columns: its rows read, for the batch and for the penalty, their gradient, and a step.
    assert kinds.count("AfmCtrReadRows") == (4 if ours else 0)
    assert (kinds.count("AfmCtrAddRows"), kinds.count("SparseTensorDenseMatMul")) == ((2, 0) if ours else (0, 2))
    assert sum(kind.startswith("AfmCtr") and kind.endswith("Rows") for kind in kinds) == (8 if ours else 0)
    assert kinds.count("ResourceScatterUpdate") == (0 if ours else 2 * (1 + len(afm.optimizer.slots)))


def test_row_l2_of_a_repeated_id_is_that_of_one_row() -> None:
    fm = compiled(model("fm", row_l2=0.1))
    give(fm)
    before = fm.table.columns["linear"].numpy()
    # Slots 0 and 1 of the last row hold id 8, with values 0: no gradient but the penalty.
    rows = {name: value[4:] for name, value in batch(weight=np.ones(5, np.float32)).items()}
    rows["feature_vals"] = tf.zeros([1, SLOTS])
    tf.function(fm.train_step, autograph=False)(rows)
    after = fm.table.columns["linear"].numpy()
    np.testing.assert_allclose(after[[1, 8]], before[[1, 8]] * (1 - 0.5 * 2 * 0.1), rtol=1e-5)
    np.testing.assert_array_equal(after[2:8], before[2:8])


@pytest.mark.parametrize("name", optimizers.names())
def test_row_zero_stays_zero(name: str) -> None:
    afm = compiled(model(row_l2=0.01, options={"factors": 3, "attention": 2, "init_stddev": 0.5}), name)
    step = tf.function(afm.train_step, autograph=False)
    for _ in range(3):
        step(batch(weight=np.ones(5, np.float32)))
    for column in afm.table.columns.values():
        assert np.all(column.numpy()[0] == 0)
        assert np.any(column.numpy()[1:] != 0) and np.all(np.isfinite(column.numpy()))


def test_the_offset_is_for_predictions_alone() -> None:
    plain, shifted = compiled(model("lr")), compiled(model("lr", bias_offset=-1.5))
    rows = batch(weight=np.ones(5, np.float32))
    for each in (plain, shifted):
        tf.function(each.train_step, autograph=False)(rows)
    np.testing.assert_array_equal(shifted.bias.numpy(), plain.bias.numpy())
    np.testing.assert_array_equal(shifted(rows), plain(rows))
    np.testing.assert_allclose(shifted(rows, corrected=True), plain(rows).numpy() - 1.5, rtol=1e-5)
    served = shifted.predict_step(rows)
    np.testing.assert_allclose(served["logit"], shifted(rows, corrected=True))
    np.testing.assert_allclose(served["probability"], tf.sigmoid(served["logit"]))
    shifted.loss_tracker.reset_state()
    expected = np.mean(shifted.example_loss(rows["label"], served["logit"]))
    np.testing.assert_allclose(float(shifted.test_step(rows)["loss"]), expected, rtol=1e-6)


def test_dropout_is_a_function_of_the_row_number() -> None:
    options = {"factors": 3, "attention": 2, "attention_dropout": 0.5, "pooled_dropout": 0.5}
    afm = model(options=options)
    give(afm)
    rows = batch()
    with pytest.raises(ValueError, match="rows"):
        afm({name: rows[name] for name in ("feature_ids", "feature_vals")}, training=True)
    dropped = afm(rows, training=True).numpy()
    order = [4, 2, 0, 1]
    np.testing.assert_allclose(afm({n: tf.gather(v, order) for n, v in rows.items()}, training=True), dropped[order])
    assert np.any(afm({**rows, "row": rows["row"] + 5}, training=True).numpy() != dropped)
    still = afm(rows).numpy()
    assert np.any(still != dropped)
    many = {name: tf.repeat(value, 400, axis=0) for name, value in rows.items()}
    mean = afm({**many, "row": tf.range(2000, dtype=tf.int64)}, training=True).numpy().reshape(5, 400).mean(axis=1)
    np.testing.assert_allclose(mean, still, atol=0.25 * np.abs(still).max())


@pytest.mark.parametrize("scale", [False, True])
def test_contributions_add_up_and_ablations_are_exact(scale: bool) -> None:
    afm = model(options={"factors": 3, "attention": 2, "scale_by_pairs": scale}, dtype="float64")
    parameters = give(afm)
    rows = batch(np.float64)
    values = clean(rows["feature_vals"])
    inputs = afm.inputs_of(rows)
    logits, attention, _ = oracle.afm(parameters, IDS, values, PAIRS, scale_by_pairs=scale)
    np.testing.assert_allclose(afm.attention(rows), attention, rtol=1e-12)
    linear = parameters["w0"] + (parameters["w"][IDS] * values).sum(axis=1)
    contributions = afm.interaction.contributions(inputs).numpy()
    np.testing.assert_allclose(contributions.sum(axis=1), logits - linear, rtol=1e-10, atol=1e-12)
    ablations = afm.interaction.ablations(inputs).numpy()
    for pair in range(len(PAIRS)):
        without, _, _ = oracle.afm(parameters, IDS, values, np.delete(PAIRS, pair, 0), scale_by_pairs=scale)
        np.testing.assert_allclose(ablations[:, pair], logits - without, rtol=1e-9, atol=1e-12)


def test_ablations_where_one_pair_has_all_attention() -> None:
    afm = model(options={"factors": 3, "attention": 2})
    parameters = {name: value * (20 if name == "h" else 1) for name, value in give(afm).items()}
    variables_of(afm)["h"].assign(parameters["h"])
    rows = batch()
    attention = afm.attention(rows).numpy()
    assert (1 - attention.max(axis=1)[attention.sum(axis=1) > 0]).min() < 1e-5
    values = clean(rows["feature_vals"])
    logits, _, _ = oracle.afm(parameters, IDS, values, PAIRS)
    ablations = afm.interaction.ablations(afm.inputs_of(rows)).numpy()
    for pair in range(len(PAIRS)):
        without, _, _ = oracle.afm(parameters, IDS, values, np.delete(PAIRS, pair, 0))
        np.testing.assert_allclose(ablations[:, pair], logits - without, rtol=1e-3, atol=1e-4)


def test_fm_pairs_stand_alone() -> None:
    fm = model("fm", dtype="float64")
    give(fm)
    inputs = fm.inputs_of(batch(np.float64))
    contributions = fm.interaction.contributions(inputs).numpy()
    total = fm(batch(np.float64)).numpy() - fm.bias.numpy() - inputs.linear.numpy().sum(axis=1)
    np.testing.assert_allclose(contributions.sum(axis=1), total, rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(fm.interaction.ablations(inputs), contributions)
    assert fm.attention(batch(np.float64)) is None


@pytest.mark.parametrize("name", ["afm", "fm", "lr"])
def test_a_saved_model_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    arguments = {"row_l2": 0.01, "row_l2_per": "step", "bias_offset": -0.5, "seed": 4, "loss": "squared"}
    one = compiled(model(name, **arguments), "adagrad")
    rows = tf.data.Dataset.from_tensors(batch(weight=np.ones(5, np.float32)))
    one.fit(rows, epochs=2, verbose=0)
    one.save(tmp_path / "model.keras")
    other = keras.saving.load_model(tmp_path / "model.keras")
    assert other.get_config() == one.get_config()
    np.testing.assert_array_equal(other(batch(), corrected=True), one(batch(), corrected=True))
    assert [v.path for v in other.variables] == [v.path for v in one.variables]
    assert [v.path for v in one.variables][:2] == ["ctr/bias", "ids/linear"]
    for each in (one, other):  # which is compiled, with what its optimizer remembers
        each.fit(rows, verbose=0)
    for after, expected in zip(other.variables, one.variables, strict=True):
        np.testing.assert_array_equal(after.numpy(), expected.numpy(), err_msg=after.path)


def test_the_same_seed_gives_the_same_model() -> None:
    one, same, other = model(seed=1), model(seed=1), model(seed=2)
    for a, b in zip(one.variables, same.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)
    assert np.any(one.interaction.W.numpy() != other.interaction.W.numpy())
    assert np.any(one.interaction.h.numpy() != other.interaction.h.numpy())
    assert np.all(one.interaction.p.numpy() == 1) and np.all(one.interaction.b.numpy() == 0)


def test_scoring_requests_runs_on_stock_ops_in_one_loop_over_blocks_of_rows() -> None:
    afm = model()
    specs = {"feature_ids": tf.TensorSpec([None, SLOTS], tf.int64), "feature_vals": tf.TensorSpec([None, SLOTS])}
    graph = tf.function(lambda rows: afm(rows, corrected=True), autograph=False).get_concrete_function(specs).graph
    kinds = Counter(operation.type for operation in graph.get_operations())
    for function in graph.as_graph_def().library.function:
        kinds.update(node.op for node in function.node_def)
    assert kinds["While"] + kinds["StatelessWhile"] == 1  # a large request takes the memory of a block
    assert not set(kinds) & {"IdentityN", "Unique", "PyFunc", "EagerPyFunc"}
    assert not [kind for kind in kinds if kind.startswith("AfmCtr")]


def test_large_batches_are_scored_like_training_with_the_same_result() -> None:
    afm = model()
    give(afm)
    small = {name: value for name, value in batch().items() if name in ("feature_ids", "feature_vals")}
    large = {name: tf.repeat(value, 400, axis=0) for name, value in small.items()}
    np.testing.assert_allclose(afm(large).numpy()[::400], afm(small).numpy(), rtol=1e-5, atol=1e-6)
    graph = tf.function(lambda: afm(large), autograph=False).get_concrete_function().graph
    kinds = {operation.type for operation in graph.get_operations()}
    assert kinds & {"AfmCtrPooling"} if uses_fused(tf.float32) else kinds & {"While", "StatelessWhile"}
