"""Raw logs scored over gRPC: nothing lost, everything in order, clear ends."""

from __future__ import annotations

import gzip
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import yaml
from served import local_server
from tiny_model import export

from afm_ctr.errors import UserError
from serving.client import Client
from serving.score import score_file

SCHEMA = {
    "name": "tiny",
    "format": {"kind": "delimited", "delimiter": ",", "header": True},
    "label": {"column": "click", "kind": "binary"},
    "key": "id",
    "fields": [
        {"name": "A", "kind": "categorical", "encoding": {"kind": "hash", "buckets": 9}},
        {"name": "B", "kind": "numeric", "encoding": {"kind": "value"}},
    ],
}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    base = tmp_path_factory.mktemp("models")
    export(base, 1)
    with local_server(base) as server:
        yield f"127.0.0.1:{server.grpc_port}"


def write_schema(folder: Path, **changes: Any) -> Path:
    path = folder / "schema.yaml"
    path.write_text(yaml.safe_dump({**SCHEMA, **changes}))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_line_has_its_answer_in_order(target: str, tmp_path: Path) -> None:
    lines = ["id,click,A,B"] + [f"k{i},{i % 2},user{i},{i / 2}" for i in range(40)]
    lines[5] = "too,few"
    lines[9] = ""
    lines[12] = "k11,what?,user11,5.5"  # a label that is none: not read here
    lines[20] = "k19,1,user19,abc"
    log = tmp_path / "log.csv.gz"
    log.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))
    out = tmp_path / "deep" / "scores.jsonl"
    summary = score_file(target, "afm", write_schema(tmp_path), log, out, batch_size=7)
    rows = read(out)
    assert [row["line"] for row in rows] == list(range(2, 42))
    assert [row["line"] for row in rows if "error" in row] == [6, 10]
    assert rows[4]["error"].startswith("column_count")
    assert rows[4]["key"] == "log.csv.gz#6"
    assert (summary.rows, summary.errors, summary.unread, summary.versions) == (40, 2, 1, [1])
    assert "40 rows, 2 of them errors" in str(summary)
    assert "\ncells that the model could not read, and treated as missing, in 1 row (bad_cells)" in str(summary)

    good = [row for row in rows if "error" not in row]
    assert all(list(row) == ["key", "line", "probability", "logit", "bad_cells"] for row in good)
    assert [row["line"] for row in good if row["bad_cells"]] == [21]
    cells = [lines[row["line"] - 1].split(",") for row in good]
    assert [row["key"] for row in good] == [cell[0] for cell in cells]
    with Client(target, allow_bad_cells=True) as client:
        expected = client.predict({"A": [cell[2] for cell in cells], "B": [cell[3] for cell in cells]})
    np.testing.assert_array_equal(np.array([row["logit"] for row in good], np.float32), expected["logit"])
    assert not list(out.parent.glob(".tmp*"))


def test_a_log_without_label_and_one_without_rows(target: str, tmp_path: Path) -> None:
    schema = write_schema(tmp_path)
    log, out = tmp_path / "log.csv", tmp_path / "out.jsonl"
    log.write_text("id,B,A\nx,1,u\n")
    score_file(target, "afm", schema, log, out)
    assert [row["key"] for row in read(out)] == ["x"]
    log.write_text("id,B,A\n")
    assert score_file(target, "afm", schema, log, out).rows == 0
    assert read(out) == []


def test_a_resolved_schema_will_do(target: str, tmp_path: Path) -> None:
    path = tmp_path / "schema.yaml"
    path.write_text(yaml.safe_dump({"format_version": 1, "id": "x", "spec": SCHEMA}))
    log, out = tmp_path / "log.csv", tmp_path / "out.jsonl"
    log.write_text("id,B,A\nx,1,u\n")
    summary = score_file(target, "afm", tmp_path, log, out)
    assert (summary.errors, summary.unread) == (0, 0) and "\n" not in str(summary)


class TokenCounter(tf.Module):
    """A libfm model: the logit is the number of tokens; an id of 666 is an error of the graph."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def raw(self, features: tf.Tensor) -> dict[str, tf.Tensor]:
        wrong = tf.strings.regex_full_match(features, ".*666:.*")
        with tf.control_dependencies([tf.debugging.assert_equal(tf.reduce_any(wrong), False, "id 666 is cursed")]):
            count = tf.cast(tf.strings.split(features).row_lengths(), tf.float32)
        return {"score": count, "logit": count, "bad_cells": tf.zeros_like(count, tf.int32)}


def test_libfm_and_a_row_that_the_model_refuses(tmp_path: Path) -> None:
    schema = write_schema(
        tmp_path,
        format={"kind": "libfm"},
        label={"column": "label", "kind": "binary", "positive": ["1"], "negative": ["-1"]},
        key=None,
        fields=[{"name": "user", "kind": "libfm", "ids": [0, 1000]}],
    )
    model = TokenCounter()
    tf.saved_model.save(model, str(tmp_path / "base" / "1"), signatures={"raw": model.raw})
    log, out = tmp_path / "log.libfm", tmp_path / "out.jsonl"
    log.write_text("1 4:1 7:1\n-1 5:1\n1 666:1\n\n9:1 8:1 7:1\n1 2:1\n")
    with local_server(tmp_path / "base") as server:
        summary = score_file(f"127.0.0.1:{server.grpc_port}", "afm", schema, log, out)
    rows = read(out)
    assert [row.get("score") for row in rows] == [2.0, 1.0, None, None, 3.0, 1.0]
    assert "id 666 is cursed" in rows[2]["error"]
    assert rows[3]["error"].startswith("empty_line")
    assert [row["key"] for row in rows][:2] == ["log.libfm#1", "log.libfm#2"]
    assert (summary.rows, summary.errors) == (6, 2)


def test_mistakes_are_one_line_and_leave_no_file(target: str, tmp_path: Path) -> None:
    schema = write_schema(tmp_path)
    log, out = tmp_path / "log.csv", tmp_path / "out.jsonl"
    log.write_text("id,click,A,B\nx,1,u,1\n")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{unused.getsockname()[1]}"
    (tmp_path / "other").mkdir()
    third = {"name": "C", "kind": "numeric", "encoding": {"kind": "value"}}
    other = write_schema(tmp_path / "other", fields=[SCHEMA["fields"][0], third])
    for arguments, says in (
        ((nobody, "afm", schema, log), nobody),
        ((target, "nope", schema, log), "--model-name"),
        ((target, "afm", tmp_path / "absent.yaml", log), "absent.yaml: no such file"),
        ((target, "afm", schema, tmp_path / "absent.csv"), "absent.csv"),
        ((target, "afm", other, log), "the model also needs B, the model has no C"),
    ):
        with pytest.raises(UserError, match=says) as caught:
            score_file(*arguments, out, timeout=3)
        assert "\n" not in str(caught.value)
    log.write_text("id,click,A\nx,1,u\n")
    with pytest.raises(UserError, match="'B'"):
        score_file(target, "afm", schema, log, out)
    assert not out.exists()
    assert not list(tmp_path.glob(".tmp*"))
