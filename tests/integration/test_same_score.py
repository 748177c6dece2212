"""One raw row has one score, whichever way it goes: records, every signature, gRPC, REST, predict."""

from __future__ import annotations

import csv
import gzip
import json
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import yaml
from served import local_server

from afm_ctr.export import export_model
from afm_ctr.features import FeatureTransform
from afm_ctr.prediction import predict_logs, predict_records
from afm_ctr.rawlog import parse_log
from afm_ctr.records import Manifest, Reader
from afm_ctr.schema import ResolvedSchema
from afm_ctr.sidetables import SideTables
from afm_ctr.synthetic import make_logs
from beam_jobs import PrepareOptions, prepare
from serving.client import Client
from serving.score import score_file
from tests.runs import EVERY_KIND, raw_rows, write_run

ROWS = 1000
CASES = {
    "every kind of field": None,
    "criteo": "criteo/criteo_120k.tsv.gz",
    "avazu": "avazu/avazu_9999.csv.gz",
    "movielens-100k": "movielens-100k/u.data",
    "telco": "telco/WA_Fn-UseC_-Telco-Customer-Churn.csv",
    "frappe": "frappe/frappe.train.libfm.gz",
}
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Scored:
    """What a case's rows came to, by the way that they went; arrays [n] in the order of the log."""

    schema: ResolvedSchema
    keys: list[str]
    raw: dict[str, np.ndarray]
    predicted: list[dict[str, Any]]
    records: dict[str, dict[str, Any]]
    record_ids: dict[str, np.ndarray]
    record_vals: dict[str, np.ndarray]
    record_bytes: dict[str, bytes]
    export: Path
    log: Path
    schema_file: Path


def first_lines(source: Path, target: Path, count: int) -> None:
    opened = gzip.open(source) if source.suffix == ".gz" else open(source, "rb")  # noqa: SIM115
    with opened as lines:
        target.write_bytes(b"".join(islice(lines, count)))


def made_up_log(case: str, path: Path) -> bool:
    """Rows for the schemas that have no real ones here; False: there are none to be had."""
    rng = np.random.default_rng(3)
    if case == "every kind of field":
        columns = raw_rows(ROWS)
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["clicked", "age in years", *list(columns)[1:]])
            for row in range(ROWS):
                writer.writerow([row % 3 // 2, *(cells[row].decode() for cells in columns.values())])
        return True
    if case == "criteo":
        make_logs(path, ROWS, seed=5)
        return True
    if case == "frappe":
        bounds = [0, 957, 5039, 5046, 5053, 5055, 5058, 5060, 5069, 5149, 5382]
        fields = [rng.integers(low, high, ROWS) for low, high in pairwise(bounds)]
        path.write_text(
            "".join(f"{1 - 2 * (r % 2)} " + " ".join(f"{ids[r]}:1" for ids in fields) + "\n" for r in range(ROWS))
        )
        return True
    return False


@pytest.fixture(scope="module", params=CASES)
def scored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[Scored]:
    case = request.param
    folder = tmp_path_factory.mktemp("same")
    log, schema_file = folder / "log.txt", root / "examples" / case / "schema.yaml"
    source = root.parent / "shared" / "data" / (CASES[case] or "nothing")
    if CASES[case] is None:
        schema_file = folder / "schema.yaml"
        schema_file.write_text(yaml.safe_dump(EVERY_KIND))
    if source.is_file():
        header = bool(yaml.safe_load(schema_file.read_text())["format"].get("header"))
        first_lines(source, log, ROWS + header)
    elif not made_up_log(case, log):
        pytest.skip(f"{source} is not here and may not be redistributed")

    data, run = folder / "data", folder / "run"
    # Words that only the later rows have are unknown to the vocabularies.
    # The made-up rows are full of bad cells.
    options = PrepareOptions(
        schema=schema_file, inputs=[str(log)], output=str(data), split="tail:0.2/0.2", max_reject_share=1.0
    )
    prepare(options)
    schema = ResolvedSchema.load(data)
    model = {"name": "afm", "factors": 4, "attention": 3, "scale_by_pairs": True}
    write_run(run, schema, model, scale=0.25)
    tables = SideTables.load(data, schema.spec)
    if tables is not None:
        tables.save(run)
    exported = export_model(run, folder / "models")

    parsed = list(parse_log(str(log), schema.spec, labelled=False, tables=tables))
    assert not any(part.rejects for part in parsed)
    predict_logs(run, [str(log)], folder / "logs.jsonl", batch_rows=300)
    predicted = read_lines(folder / "logs.jsonl")
    records, ids, vals, raw_records = {}, {}, {}, {}
    manifest = Manifest.load(data)
    for split in manifest.splits:
        predict_records(run, data, split, folder / f"{split}.jsonl", batch_rows=70)
        records.update((line["key"], line) for line in read_lines(folder / f"{split}.jsonl"))
        reader = Reader(data, split, 128, shuffle=False)
        for step in range(reader.steps_per_epoch):
            batch = reader.batch(0, step)
            for row in range(reader.local_rows(step)):
                key = batch["key"][row].decode()
                ids[key], vals[key] = batch["feature_ids"][row], batch["feature_vals"][row]
        for shard in manifest.shards_of(split):
            for record in tf.data.TFRecordDataset(manifest.path_of(data, shard)):
                example = tf.train.Example.FromString(record.numpy())
                raw_records[example.features.feature["key"].bytes_list.value[0].decode()] = record.numpy()
    raw = {name: np.concatenate([part.columns[name] for part in parsed]) for name in schema.raw_columns}
    keys = [key.decode() for part in parsed for key in part.keys]
    yield Scored(schema, keys, raw, predicted, records, ids, vals, raw_records, Path(exported.path), log, schema_file)


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def column(lines: list[dict[str, Any]], name: str) -> np.ndarray:
    return np.array([line[name] for line in lines])


@pytest.fixture
def expected(scored: Scored) -> np.ndarray:
    """The probability of every row, by `predict` on the raw log; every other way is held against it."""
    assert [line["key"] for line in scored.predicted] == scored.keys
    probability = column(scored.predicted, "probability")
    assert len(probability) == ROWS
    # A comparison of scores that are all alike, or all 0 or 1, would say little.
    assert np.std(probability) > 0.02 and len(np.unique(probability)) > ROWS / 20
    assert np.mean((probability > 0.001) & (probability < 0.999)) > 0.5
    return probability


def test_records_hold_the_ids_of_every_other_way(scored: Scored, tmp_path: Path) -> None:
    """Beam's records, the transform by itself at other batch sizes, and the transform inside a SavedModel."""
    transform = FeatureTransform(scored.schema)
    spec = {name: tf.TensorSpec([None], tf.string, name) for name in scored.schema.raw_columns}

    @tf.function(input_signature=[spec])
    def encode(columns: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return transform(columns)._asdict()

    holder = tf.Module()
    holder.encode, holder.transform = encode, transform
    tf.saved_model.save(holder, str(tmp_path / "transform"))
    saved = tf.saved_model.load(str(tmp_path / "transform"))
    whole = {name: tf.constant(cells, tf.string) for name, cells in scored.raw.items()}
    together = saved.encode(whole)
    ids, vals = together["feature_ids"].numpy(), together["feature_vals"].numpy()
    for start, stop in ((0, 1), (1, 8), (8, 500), (500, ROWS)):
        part = transform({name: cells[start:stop] for name, cells in whole.items()})
        np.testing.assert_array_equal(part.feature_ids, ids[start:stop])
        np.testing.assert_array_max_ulp(part.feature_vals.numpy(), vals[start:stop], 1)
    bad = together["bad"].numpy().any(axis=1)
    assert len(scored.records) == ROWS - bad.sum() >= ROWS / 10
    for row, key in enumerate(scored.keys):
        assert (key in scored.record_ids) != bad[row]
        if not bad[row]:
            np.testing.assert_array_equal(scored.record_ids[key], ids[row])
            np.testing.assert_array_max_ulp(scored.record_vals[key], vals[row], 1)


def test_prepared_records_are_scored_like_the_raw_log(scored: Scored, expected: np.ndarray) -> None:
    rows = [row for row, key in enumerate(scored.keys) if key in scored.records]
    lines = [scored.records[scored.keys[row]] for row in rows]
    np.testing.assert_allclose(column(lines, "probability"), expected[rows], rtol=0, atol=TOLERANCE)


def test_served_scores_are_those_of_predict(scored: Scored, expected: np.ndarray, tmp_path: Path) -> None:
    """gRPC with every signature, the scoring command's function, and REST in both forms."""
    with local_server(scored.export.parent, rest_api_port=0) as server:
        target = f"127.0.0.1:{server.grpc_port}"
        answers: dict[str, tuple[list[int], np.ndarray]] = {}
        everything = list(range(ROWS))
        score_file(target, "afm", scored.schema_file, scored.log, tmp_path / "scores.jsonl", 77)
        lines = read_lines(tmp_path / "scores.jsonl")
        assert [line["key"] for line in lines] == scored.keys
        assert [line["bad_cells"] for line in lines] == [line["bad_cells"] for line in scored.predicted]
        answers["score"] = everything, column(lines, "probability")
        recorded = [row for row, key in enumerate(scored.keys) if key in scored.record_ids]
        with Client(target, "afm", allow_bad_cells=True) as client:
            answers["raw"] = everything, client.predict(scored.raw, "raw")["probability"]
            by_ids = {
                "feature_ids": np.stack([scored.record_ids[scored.keys[row]] for row in recorded]),
                "feature_vals": np.stack([scored.record_vals[scored.keys[row]] for row in recorded]),
            }
            answers["serving_default"] = recorded, client.predict(by_ids, "serving_default")["probability"]
            examples = [scored.record_bytes[scored.keys[row]] for row in recorded]
            answers["examples"] = recorded, client.predict({"examples": examples}, "examples")["probability"]
            alone = [client.predict({n: cells[r : r + 1] for n, cells in scored.raw.items()}) for r in range(20)]
            answers["alone"] = everything[:20], np.concatenate([a["probability"] for a in alone])
        columns = {name: [cell.decode() for cell in cells] for name, cells in scored.raw.items()}
        rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
        by_row = rest(server.rest_port, {"signature_name": "raw", "instances": rows})["predictions"]
        answers["REST, by row"] = everything, column(by_row, "probability")
        by_column = rest(server.rest_port, {"signature_name": "raw", "inputs": columns})["outputs"]
        answers["REST, by column"] = everything, np.array(by_column["probability"])
    for way, (at, probability) in answers.items():
        np.testing.assert_allclose(probability, expected[at], rtol=0, atol=TOLERANCE, err_msg=way)


def rest(port: int | None, request: dict[str, Any]) -> dict[str, Any]:
    url = f"http://127.0.0.1:{port}/v1/models/afm:predict"
    with urllib.request.urlopen(url, json.dumps(request).encode(), timeout=60) as response:
        answer: dict[str, Any] = json.load(response)
        return answer
