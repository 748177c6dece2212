"""Validation of exports: good ones pass in a fresh process, and every kind of damage is named."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from afm_ctr.errors import UserError
from afm_ctr.export import ExportSummary, export_model, validate_export
from afm_ctr.export.clean_process import inspect
from afm_ctr.export.contract import signature_faults
from tests.integration.conftest import Walk, afm_ctr, last_json
from tests.runs import every_kind, write_run

ALL = [
    "pairs.json names slots and pairs",
    "warm-up requests can be read",
    "loads in a fresh process",
    "vocabularies are as they were exported",
    "stock ops only",
    "signatures: names, types, ranks",
    "warm-up requests are answered",
    "batch is every output's first dimension",
    "the same row scores the same by every signature",
    "scores are the checkpoint's",
]


class Made(NamedTuple):
    run: Path
    summary: ExportSummary


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("valid")
    write_run(folder / "run", every_kind(negative_sampling={"rate": 0.1, "correct": "logit"}))
    return Made(folder / "run", export_model(folder / "run", folder / "models" / "ads"))


@pytest.fixture
def copy(made: Made, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made.summary.path, tmp_path / "1"))


def failure(folder: Path, model_dir: Path | None = None) -> tuple[str, str]:
    """Name and detail of the check that fails, looked for in this process (a fresh one takes seconds)."""
    found = validate_export(folder, model_dir, inspect=inspect)
    assert found.failed is not None
    asked = [check.passed for check in found.checks]
    assert asked == sorted(asked, key=lambda passed: [True, False, None].index(passed)), "stops at the first"
    return found.failed.name, found.failed.detail


def test_an_export_passes_every_check_in_a_fresh_process(made: Made) -> None:
    result = afm_ctr(
        "validate-export",
        "--export-dir",
        made.summary.path,
        "--model-dir",
        made.run,
        "--checkpoint",
        "latest",
        "--json",
    )
    told = last_json(result)
    assert told["valid"] is True
    assert [(check["name"], check["passed"]) for check in told["checks"]] == [(name, True) for name in ALL]
    assert all(name.split(":")[0] in result.stdout for name in ALL)


def test_a_failed_check_is_exit_2_and_one_line(copy: Path) -> None:
    (copy / "assets.extra" / "tf_serving_warmup_requests").unlink()
    result = afm_ctr("validate-export", "--export-dir", copy, code=2)
    assert len(result.stderr.strip().splitlines()) == 1
    assert "warm-up requests can be read" in result.stderr and "is missing" in result.stderr
    assert "FAILED" in result.stdout


def test_the_fresh_process_has_nothing_of_this_package(made: Made) -> None:
    script = Path(sys.modules[inspect.__module__].__file__ or "")
    code = (
        f"import runpy, sys; runpy.run_path({str(script)!r}); print([m for m in sys.modules if m.startswith('afm')])"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_folders_that_are_no_version(made: Made, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"give one version: .*/ads/1"):
        validate_export(Path(made.summary.base))
    with pytest.raises(UserError, match="no saved_model"):
        validate_export(tmp_path / "nothing")


def test_damage_is_named(copy: Path) -> None:
    extra = copy / "assets.extra"
    kept = (extra / "tf_serving_warmup_requests").read_bytes()
    with tf.io.TFRecordWriter(str(extra / "tf_serving_warmup_requests")) as writer:
        writer.write(b"\x0a\x03abc")
    assert failure(copy) == (
        ALL[1],
        f"{extra}/tf_serving_warmup_requests: record 0 is not a PredictionLog of a Predict request",
    )
    records = [record.numpy() for record in tf.data.TFRecordDataset([_written(extra / "kept", kept)])]
    with tf.io.TFRecordWriter(str(extra / "tf_serving_warmup_requests")) as writer:
        for record in records[:-2]:
            writer.write(record)
    assert failure(copy) == (ALL[6], "no request warms up explain")
    (extra / "tf_serving_warmup_requests").write_bytes(kept)
    told = json.loads((extra / "pairs.json").read_text())
    (extra / "pairs.json").write_text(json.dumps({**told, "pairs": told["pairs"][1:]}))
    name, detail = failure(copy)
    assert name == ALL[5] and "explain: output attention is float32" in detail
    (extra / "pairs.json").write_text("{")
    assert failure(copy)[0] == ALL[0]


def _written(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


def test_a_missing_vocabulary_is_named(copy: Path) -> None:
    for asset in (copy / "assets").iterdir():
        asset.unlink()
    assert failure(copy)[0] == ALL[2]


def test_a_vocabulary_that_has_changed_is_named(copy: Path) -> None:
    asset = max((copy / "assets").iterdir())
    asset.write_bytes(asset.read_bytes() + b"one-more\n")
    assert failure(copy) == (ALL[3], f"{asset} has changed since it was exported; export the run again")


def test_scores_of_another_checkpoint_are_named(made: Made, tmp_path: Path) -> None:
    write_run(tmp_path / "other", every_kind(negative_sampling={"rate": 0.1, "correct": "logit"}), seed=2)
    name, detail = failure(Path(made.summary.path), tmp_path / "other")
    assert name == ALL[9] and "against the checkpoint: logit differs by" in detail
    write_run(tmp_path / "third", every_kind())
    name, detail = failure(Path(made.summary.path), tmp_path / "third")
    assert name == ALL[0] and "the export is of schema" in detail


class Odd(tf.Module):
    """Breaks one promise of the contract, by name."""

    def __init__(self, which: str) -> None:
        super().__init__()
        self.which = which
        self.weight = tf.Variable(1.0)

    def ids(self, feature_ids: tf.Tensor, feature_vals: tf.Tensor) -> dict[str, tf.Tensor]:
        logit = self.weight * tf.reduce_sum(feature_vals, axis=1)
        if self.which == "constant":
            logit = tf.ensure_shape(tf.concat([logit, [0.0]], 0), [None])
        if self.which == "python":
            logit = tf.ensure_shape(tf.py_function(lambda x: x, [logit], tf.float32), [None])
        return {"probability": tf.sigmoid(logit), "logit": logit, "bad_cells": tf.zeros_like(logit, tf.int32)}

    def raw(self, A: tf.Tensor) -> dict[str, tf.Tensor]:
        logit = tf.strings.to_number(tf.where(tf.equal(A, ""), "0", A)) + (1.0 if self.which == "apart" else 0.0)
        bad = tf.zeros_like(logit, tf.int64 if self.which == "type" else tf.int32)
        return {"probability": tf.sigmoid(logit), "logit": logit, "bad_cells": bad}

    def examples(self, examples: tf.Tensor) -> dict[str, tf.Tensor]:
        return self.ids(tf.zeros([tf.size(examples), 1], tf.int64), tf.zeros([tf.size(examples), 1]))


@pytest.mark.parametrize(
    ("which", "check", "says"),
    [
        ("python", ALL[4], "EagerPyFunc"),
        ("type", ALL[5], "raw: output bad_cells is int64 [-1], not int32 [-1]"),
        ("constant", ALL[7], "for 1 rows"),
        ("apart", ALL[8], "logit differs by 1"),
        ("", "", ""),
    ],
)
def test_broken_promises_are_named(tmp_path: Path, which: str, check: str, says: str) -> None:
    odd, folder = Odd(which), tmp_path / "1"
    ids, vals = (
        tf.TensorSpec([None, 1], tf.int64, "feature_ids"),
        tf.TensorSpec([None, 1], tf.float32, "feature_vals"),
    )
    signatures = {
        "serving_default": tf.function(odd.ids).get_concrete_function(ids, vals),
        "raw": tf.function(odd.raw).get_concrete_function(tf.TensorSpec([None], tf.string, "A")),
        "examples": tf.function(odd.examples).get_concrete_function(tf.TensorSpec([None], tf.string, "examples")),
    }
    tf.saved_model.save(odd, str(folder), signatures=signatures)
    text = np.array([b""], object)
    encoded = {"feature_ids": np.zeros([1, 1], np.int64), "feature_vals": np.zeros([1, 1], np.float32)}
    write_extra(folder, {"serving_default": encoded, "raw": {"A": text}, "examples": {"examples": text}})
    if which:
        name, detail = failure(folder)
        assert name == check and says in detail
    else:
        assert validate_export(folder, inspect=inspect).failed is None


def write_extra(folder: Path, requests: dict[str, dict[str, Any]]) -> None:
    from tensorflow_serving.apis import prediction_log_pb2

    (folder / "assets.extra").mkdir()
    (folder / "assets.extra" / "pairs.json").write_text('{"schema_id": "x", "slots": ["A"], "pairs": []}')
    with tf.io.TFRecordWriter(str(folder / "assets.extra" / "tf_serving_warmup_requests")) as writer:
        for signature, inputs in requests.items():
            log = prediction_log_pb2.PredictionLog()
            log.predict_log.request.model_spec.signature_name = signature
            for name, array in inputs.items():
                log.predict_log.request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
            writer.write(log.SerializeToString())


def test_contract_by_hand() -> None:
    tensors = {"feature_ids": ("int64", [-1, 2]), "feature_vals": ("float32", [-1, 2])}
    scores = {"score": ("float32", [-1]), "logit": ("float32", [-1]), "bad_cells": ("int32", [-1])}
    method = {"method": "tensorflow/serving/predict"}
    good: dict[str, dict[str, Any]] = {
        "serving_default": {**method, "inputs": tensors, "outputs": scores},
        "examples": {**method, "inputs": {"examples": ("string", [-1])}, "outputs": scores},
        "raw": {**method, "inputs": {"A": ("string", [-1])}, "outputs": scores},
    }
    assert signature_faults(good, 2, 1) == []
    assert signature_faults(good, 3, 1)[0] == "serving_default: input feature_ids is int64 [-1, 2], not int64 [-1, 3]"
    assert signature_faults({**good, "extra": good["raw"]}, 2, 1) == ["extra is not a signature of the contract"]
    assert signature_faults({"raw": good["raw"]}, 2, 1) == [
        "there is no signature serving_default",
        "there is no signature examples",
    ]
    old = {**good, "examples": {**good["examples"], "outputs": {k: scores[k] for k in ("score", "logit")}}}
    assert signature_faults(old, 2, 1) == ["examples: output bad_cells is missing"]
    rank = {**good, "raw": {**good["raw"], "inputs": {"A": ("string", None)}, "method": "other"}}
    assert signature_faults(rank, 2, 1) == [
        "raw: the method is other, not tensorflow/serving/predict",
        "raw: input A is string of unknown rank, not string [-1]",
    ]


def test_half_precision_tables(made: Made, tmp_path: Path) -> None:
    summary = export_model(made.run, tmp_path / "models", float16_tables=True)
    assert summary.half is not None and summary.half.bytes_before == 2 * summary.half.bytes_after
    full_size, half_size = (
        Path(path, "variables/variables.data-00000-of-00001").stat().st_size
        for path in (made.summary.path, summary.path)
    )
    assert full_size - half_size == pytest.approx(summary.half.bytes_after, abs=200)
    assert "was not measured" in str(summary)
    types = tf.train.load_checkpoint(f"{summary.path}/variables/variables").get_variable_to_dtype_map()
    assert tf.float16 in types.values()
    assert validate_export(summary.path, made.run, inspect=inspect).failed is None
    raw = {name: tf.constant([b"", b"3"]) for name in summary.raw_columns}
    full, half = (
        tf.saved_model.load(path).signatures["raw"](**raw)["logit"].numpy()
        for path in (made.summary.path, summary.path)
    )
    np.testing.assert_allclose(half, full, atol=0.01)
    assert np.any(half != full)


def test_half_precision_needs_vectors_that_fit(tmp_path: Path) -> None:
    write_run(tmp_path / "lr", every_kind(), {"name": "lr"})
    with pytest.raises(UserError, match="has no vectors"):
        export_model(tmp_path / "lr", tmp_path / "models", float16_tables=True)
    assert not (tmp_path / "models").exists()


def test_what_half_precision_and_thinning_change_is_printed(walked: Walk, tmp_path: Path) -> None:
    result = afm_ctr("export", "--model-dir", walked.run, "--export-base", tmp_path / "m", "--float16-tables",
                     "--data", walked.data, "--json")  # fmt: skip
    told = last_json(result)["half"]
    assert told["bytes_before"] == 2 * told["bytes_after"] > 0
    assert told["rows"] > 100 and 0.3 < told["before"]["auc"] < 1
    assert told["after"]["auc"] == pytest.approx(told["before"]["auc"], abs=1e-3)
    assert f"auc {told['before']['auc']:.6f} -> {told['after']['auc']:.6f}" in " ".join(result.stdout.split())


def test_the_summary_tells_the_correction_for_thinned_negatives(made: Made) -> None:
    assert made.summary.logit_offset == pytest.approx(math.log(0.1))
    assert "logit corrected by -2.3026: a share of 0.1 of the negatives was kept" in str(made.summary)
