"""The commands as a person uses them: the whole path, and one clear line for each mistake."""

from __future__ import annotations

import json
import re
import shutil
import socket
from pathlib import Path

import prepared
import pytest
from conftest import SMALL, Walk, afm_ctr, last_json

from afm_ctr.sizing import settings_for
from afm_ctr.training.config import TrainConfig
from afm_ctr.training.defaults import data_size, default_config


def complaint(*arguments: object) -> str:
    """The one line of a command that must end with 2 because of the user's mistake."""
    result = afm_ctr(*arguments, code=2)
    lines = [line for line in result.stderr.splitlines() if line.startswith("afm-ctr")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    return lines[0]


def test_rows_are_conserved(walked: Walk) -> None:
    prepared = walked.prepared
    rejected = sum(prepared["rejects"].values())
    assert prepared["rows_in"] == 3000 == prepared["rows_out"] + rejected
    assert prepared["rejects"] == walked.made["malformed"]
    assert rejected > 0
    assert sum(counts["rows"] for counts in prepared["splits"].values()) == prepared["rows_out"]
    kept = [line for file in (walked.data / "rejects").glob("*.jsonl") for line in file.read_text().splitlines()]
    assert len(kept) == rejected
    assert all(json.loads(line)["reason"] in prepared["rejects"] for line in kept)


def test_training_left_what_it_should(walked: Walk) -> None:
    run = json.loads((walked.run / "run.json").read_text())
    assert run["schema_id"] == walked.prepared["schema_id"]
    assert run["versions"]["tensorflow"]
    assert (walked.run / "schema.yaml").exists()
    assert list((walked.run / "checkpoints").glob("step-*"))
    history = [json.loads(line) for line in (walked.run / "history.jsonl").read_text().splitlines()]
    assert len(history) == 1
    assert history[0]["loss"] > 0
    assert walked.trained["rows_per_second"] > 0


def test_evaluate_and_predict_agree(walked: Walk, tmp_path: Path) -> None:
    metrics = last_json(
        afm_ctr("evaluate", "--data", walked.data, "--split", "test", "--model-dir", walked.run, "--json")
    )
    out = tmp_path / "scores.jsonl"
    afm_ctr("predict", "--model-dir", walked.run, "--data", walked.data, "--split", "test", "--output", out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == walked.prepared["splits"]["test"]["rows"] == metrics["rows"]
    from sklearn.metrics import log_loss, roc_auc_score

    labels, scores = [row["label"] for row in rows], [row["probability"] for row in rows]
    assert metrics["log_loss"] == pytest.approx(log_loss(labels, scores), abs=1e-6)
    assert metrics["auc"] == pytest.approx(roc_auc_score(labels, [row["logit"] for row in rows]), abs=1e-9)


def test_predict_scores_raw_logs_and_loses_no_line(walked: Walk, tmp_path: Path) -> None:
    out = tmp_path / "scores.jsonl"
    summary = last_json(
        afm_ctr("predict", "--model-dir", walked.run, "--input", walked.logs, "--output", out, "--json")
    )
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 3000
    assert sum("error" in row for row in rows) == summary["errors"] > 0
    assert all(0 < row["probability"] < 1 for row in rows if "error" not in row)


def test_a_second_prepare_does_not_overwrite_in_silence(walked: Walk) -> None:
    line = complaint("prepare", "--schema", walked.schema, "--input", walked.logs, "--output", walked.data)
    assert "--overwrite" in line
    assert (walked.data / "manifest.json").exists()


def test_a_corrupt_shard(walked: Walk, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(walked.data, data)
    shard = next(data.glob("*/train/*.tfrecord"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 0x40
    shard.write_bytes(content)
    line = complaint("train", "--data", data, "--model-dir", tmp_path / "run", "--config", walked.config, *SMALL)
    assert shard.name in line


def test_a_foreign_schema(walked: Walk, tmp_path: Path) -> None:
    schema = tmp_path / "schema.yaml"
    schema.write_text(walked.schema.read_text().replace("buckets: ", "buckets: 1"))
    data = tmp_path / "data"
    described = ["--schema", schema, "--input", walked.logs, "--split", "tail:0.1/0.1", "--max-reject-share", "0.05"]
    afm_ctr("prepare", *described, "--output", data)
    line = complaint("evaluate", "--data", data, "--split", "test", "--model-dir", walked.run)
    assert walked.prepared["schema_id"] in line


def test_an_id_out_of_range(walked: Walk, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(walked.data, data)
    rewrite_first_shard(data, feature_id=10**9)
    line = complaint("train", "--data", data, "--model-dir", tmp_path / "run", "--config", walked.config, *SMALL)
    assert str(10**9) in line


def rewrite_first_shard(data: Path, feature_id: int) -> None:
    """Give the first record of the first training shard a wrong id, and the manifest the new checksums."""
    import hashlib

    import tensorflow as tf

    from afm_ctr.records import ShardWriter

    manifest = json.loads((data / "manifest.json").read_text())
    shard = next(s for s in manifest["shards"] if s["split"] == "train")
    file = next(data.glob(f"**/train/{Path(shard['file']).name}"))
    records = [record.numpy() for record in tf.data.TFRecordDataset(str(file))]
    example = tf.train.Example.FromString(records[0])
    example.features.feature["feature_ids"].int64_list.value[0] = feature_id
    records[0] = example.SerializeToString()
    with file.open("wb") as stream:
        writer = ShardWriter(stream)
        writer.write(records)
        stats = writer.close()
    shard.update(sha256=hashlib.sha256(file.read_bytes()).hexdigest(), bytes=file.stat().st_size)
    shard.update(block_offsets=list(stats.block_offsets))
    (data / "manifest.json").write_text(json.dumps(manifest))


def test_an_empty_split_that_was_asked_for(walked: Walk, tmp_path: Path) -> None:
    few = tmp_path / "few.tsv"
    few.write_bytes(b"\n".join([b"\t".join([b"1", *[b"5"] * 13, *[b"68fd1e64"] * 26])] * 3) + b"\n")
    out = tmp_path / "data"
    line = complaint(
        "prepare", "--schema", walked.schema, "--input", few, "--output", out, "--split", "tail:0.1/0.1"
    )  # fmt: skip
    assert "valid" in line or "test" in line
    assert not (out / "manifest.json").exists()


def test_a_missing_column(root: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("customerID,gender\n1,Male\n")
    line = complaint(
        "prepare", "--schema", root / "examples/telco/schema.yaml", "--input", log, "--output", tmp_path / "data"
    )  # fmt: skip
    assert "log.csv" in line
    assert "Churn" in line or "tenure" in line or "SeniorCitizen" in line


def test_data_that_is_not_prepared(walked: Walk, tmp_path: Path) -> None:
    line = complaint("train", "--data", tmp_path, "--model-dir", tmp_path / "run", "--config", walked.config)
    assert "manifest.json" in line
    assert "afm-ctr prepare" in line


def test_an_unknown_key_of_the_config(walked: Walk, tmp_path: Path) -> None:
    line = complaint(
        "train", "--data", walked.data, "--model-dir", tmp_path / "run", "--config", walked.config,
        "--set", "optimiser.name=adam",
    )  # fmt: skip
    assert "optimiser" in line
    assert "optimizer" in line


def test_a_dead_server(walked: Walk, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    out = tmp_path / "scores.jsonl"
    line = complaint(
        "score", "--target", f"127.0.0.1:{port}", "--schema", walked.schema, "--input", walked.logs, "--output", out,
        "--timeout", "2",
    )  # fmt: skip
    assert str(port) in line
    assert not out.exists()


def test_a_port_in_use(walked: Walk, tmp_path: Path) -> None:
    base = tmp_path / "served"
    afm_ctr("export", "--model-dir", walked.run, "--export-base", base)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = complaint("serve", "--model_name", "afm", "--model_base_path", base, f"--port={port}")
    assert str(port) in line


def test_an_unknown_flag_of_serve_is_refused_by_name() -> None:
    assert "--tensorflow_session_parallelism" in complaint("serve", "--tensorflow_session_parallelism=4")


def test_an_unknown_beam_option_is_refused_by_name(walked: Walk, tmp_path: Path) -> None:
    line = complaint(
        "prepare", "--schema", walked.schema, "--input", walked.logs, "--output", tmp_path / "d", "--dirct_workers=2"
    )  # fmt: skip
    assert "--dirct_workers" in line


def test_waiting_for_a_model_that_nobody_serves(walked: Walk, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        target = f"127.0.0.1:{taken.getsockname()[1]}"
    more = ["--schema", walked.schema, "--input", walked.logs, "--output", tmp_path / "scores.jsonl"]
    line = complaint("score", "--target", target, "--wait", 1, *more)
    assert "was not ready in 1 s" in line and target in line


def test_train_needs_no_config(tmp_path: Path) -> None:
    data, run = prepared.write(tmp_path / "data"), tmp_path / "run"
    result = afm_ctr("train", "--data", data, "--model-dir", run, "--set", "max_steps=2", "--json")
    assert not re.search(r"^(WARNING|[IWE]\d{4} )", result.stderr, re.MULTILINE)
    summary = last_json(result)
    assert summary["steps"] == 2
    sized = TrainConfig.from_content(settings_for(data_size(data)).content, ["max_steps=2"])
    assert TrainConfig.load(run / "config.yaml") == sized == default_config(data, run)
    assert f"settings sized to the data, kept in {run / 'config.yaml'}; --config names your own" in result.stderr
    more = ("train", "--data", data, "--model-dir", tmp_path / "more", "--from-checkpoint", run)
    said = f"settings are those of {run}; --config names others"
    assert said in afm_ctr(*more).stderr
    assert said not in afm_ctr(*more).stderr  # resumed: its own
