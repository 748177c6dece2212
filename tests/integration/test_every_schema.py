"""Random schemas on random rows: Beam's records, the transform by itself and the exported one say the same."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from afm_ctr.export.servable import Servable
from afm_ctr.features import FeatureTransform
from afm_ctr.rawlog.side import read_side_tables
from afm_ctr.records import Manifest, Reader
from afm_ctr.schema import FeatureSchema, ResolvedSchema
from beam_jobs import PrepareOptions, prepare
from tests.runs import write_run
from tests.unit.reference_transform import transform_row

ROWS = 120
FEW = settings(
    max_examples=4, deadline=None, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate]
)

WORDS = ["", "", "a", "b", "B", " b", "ä", "x y", "0", "new, er", 'say "so"', "\x00", "日本", "a" * 20]
NUMBERS = ["", " ", "0", "-0", "1", "2.5", "-3", "1e3", " 7 ", "0.1", "1e-30", "12345678.9", "3e38"]
BAD_NUMBERS = ["nan", "inf", "0x1", "1_0", "1e400", "--1", "٣", "4e38"]
CODES, BAD_CODES = ["", "0", "3", "06", " 2 "], ["7", "-1", "1.0", "x", "9" * 19]
POOLS: dict[str, tuple[list[str], list[str]]] = {
    "word": (WORDS, []),
    "other": (WORDS, []),
    "user": (["", "u1", "u2", "u3", "é", "nobody"], []),
    "tags": (["", "|", "a|b", "b||b|a", "a|x|b|ä|0", "c"], []),
    "num": (NUMBERS, BAD_NUMBERS),
    "count": (NUMBERS, BAD_NUMBERS),
    "code": (CODES, BAD_CODES),
    "codes": (["", "1;2", " 3 ;;4", "0;1;2;3;4;5"], ["1;x", "1;2;77"]),
    "iso": (["", "2014-10-21", "2016-02-29T23:59:59.9Z", "2014-10-21 00:05+0200"], ["2015-02-29", "24:00", "1"]),
    "packed": (["", "14102107", "16022923", "69123100"], ["14102124", "1410210", "14131300"]),
    "stamp": (["", "0", "-1", "1413849600", "951782400.5"], ["1e9", "x", "1413849600s"]),
}
FORMATS = {"iso": "iso", "packed": "%y%m%d%H", "stamp": "epoch"}
USERS = "user,age,city,Red,Green,Blue\nu1,30,a,1,0,1\né,,x y,0,0,0\nu2,7.5,ä,0,1,true\nunused,1,b,1,1,1\n"

missing = st.sampled_from(["absent", "own"])
hashed = st.integers(1, 50).map(lambda n: {"kind": "hash", "buckets": n})
vocabulary = st.fixed_dictionaries(
    {"kind": st.just("vocabulary")},
    optional={
        "min_count": st.integers(1, 4),
        "top": st.integers(1, 8),
        "oov": st.integers(1, 4),
        "capacity": st.just(500),
    },
)
own_space = st.one_of(hashed, vocabulary).map(lambda space: {"encoding": space})
spaces = st.one_of(own_space, own_space, st.sampled_from([{"space": "words"}, {"space": "few"}]))


@st.composite
def fields(draw: st.DrawFn) -> list[dict[str, Any]]:
    """At least one field of every kind, in any order, with any of its options."""

    def word(column: str) -> dict[str, Any]:
        return {"kind": "categorical", "column": column, "missing": draw(missing), **draw(spaces)}

    def several(column: str, separator: str, space: dict[str, Any]) -> dict[str, Any]:
        return {
            "kind": "categorical",
            "column": column,
            "separator": separator,
            "max_values": draw(st.integers(1, 4)),
            "keep": draw(st.sampled_from(["first", "last"])),
            "value": draw(st.sampled_from(["mean", "one"])),
            "missing": draw(missing),
            **space,
        }

    def numeric(column: str) -> dict[str, Any]:
        if draw(st.booleans()):
            encoding = {"kind": "value", "log": draw(st.booleans()), "standardise": draw(st.booleans())}
            policy = draw(st.one_of(missing, st.floats(-5, 5).map(lambda x: {"value": x})))
            return {"kind": "numeric", "column": column, "encoding": encoding, "missing": policy}
        cuts = [{"quantiles": draw(st.integers(2, 6))}, {"boundaries": [-3.0, 0.0, 0.1, 2.5]}, {"log_square": True}]
        encoding = {"kind": "buckets", **draw(st.sampled_from(cuts))}
        return {"kind": "numeric", "column": column, "encoding": encoding, "missing": draw(missing)}

    def time(column: str) -> dict[str, Any]:
        part = draw(st.sampled_from(["hour", "weekday", "weekend", "day", "month"]))
        kind = {"kind": "time", "column": column, "format": FORMATS[column], "part": part}
        return {**kind, "missing": draw(missing)}

    def cross(columns: list[str]) -> dict[str, Any]:
        return {"kind": "cross", "columns": columns, "missing": draw(missing), **draw(spaces)}

    ids = {"encoding": {"kind": "ids", "size": draw(st.integers(7, 9))}}
    crossed = st.lists(st.sampled_from(["word", "other", "user", "city"]), min_size=2, max_size=3, unique=True)
    made = [
        word("word"),
        {**word("other"), "encoding": None, "space": "words"},
        {**word("user"), "encoding": None, "space": "few"},
        word("city"),
        several("tags", "|", draw(spaces)),
        several("Colours", "|", draw(own_space)),
        several("codes", ";", {"encoding": {"kind": "ids", "size": 7}}),
        {"kind": "categorical", "column": "code", "missing": draw(missing), **ids},
        numeric("num"),
        numeric("count"),
        numeric("age"),
        *(time(column) for column in FORMATS),
        cross(draw(crossed)),
        cross(["city", "word"]),
    ]
    ordered = draw(st.permutations(made))
    return [{"name": f"f{number}", **field} for number, field in enumerate(ordered)]


layouts = st.sampled_from(
    [{"kind": "delimited"}, {"kind": "delimited", "delimiter": "\t", "header": False}, {"kind": "jsonl"}]
)


def schema_of(layout: dict[str, Any], chosen: list[dict[str, Any]]) -> dict[str, Any]:
    columns = {"columns": ["id", "label", *POOLS]} if layout.get("header") is False else {}
    return {
        "name": "random",
        "format": {**layout, **columns},
        "label": {"column": "label"},
        "key": "id",
        "side_tables": {
            "users": {
                "input": "users.csv",
                "format": {"kind": "delimited"},
                "key": "user",
                "columns": ["age", "city", {"name": "Colours", "flags": ["Red", "Green", "Blue"]}],
            }
        },
        "spaces": {"words": {"kind": "vocabulary", "oov": 2}, "few": {"kind": "hash", "buckets": 11}},
        "fields": chosen,
    }


def log_of(layout: dict[str, Any], seed: int) -> tuple[str, list[dict[str, str]]]:
    """A log and its rows; in about every third row a cell is damaged."""
    pick = random.Random(seed)
    rows = []
    for number in range(ROWS):
        row = {"id": f"r{number}", "label": str(pick.randrange(2))}
        row |= {column: pick.choice(good) for column, (good, _) in POOLS.items()}
        if number % 3 == 0:
            column = pick.choice([name for name, (_, bad) in POOLS.items() if bad])
            row[column] = pick.choice(POOLS[column][1])
        rows.append(row)
    if layout["kind"] == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=pick.random() < 0.5) + "\n" for row in rows), rows
    delimiter = layout.get("delimiter", ",")

    def line(cells: list[str]) -> str:
        quoted = [f'"{c.replace(chr(34), chr(34) * 2)}"' if set(c) & {'"', delimiter} else c for c in cells]
        return delimiter.join(quoted) + "\n"

    head = line(list(rows[0])) if layout.get("header", True) else ""
    return head + "".join(line(list(row.values())) for row in rows), rows


def saved_encoding(servable: Servable, transform: FeatureTransform, folder: Path) -> Any:
    """The servable, saved with its signatures and one that hands out ids; loaded."""
    texts = {name: tf.TensorSpec([None], tf.string, name=name) for name in transform.schema.raw_columns}

    def encode(**columns: tf.Tensor) -> dict[str, tf.Tensor]:
        return transform(columns)._asdict()

    encoding = tf.function(encode).get_concrete_function(**texts)
    tf.saved_model.save(servable, str(folder / "saved"), signatures={**servable.signatures(), "encode": encoding})
    return tf.saved_model.load(str(folder / "saved"))


def records_of(data: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    found = {}
    for split in Manifest.load(data).splits:
        reader = Reader(data, split, 64, shuffle=False)
        for step in range(reader.steps_per_epoch):
            batch = reader.batch(0, step)
            for row in range(reader.local_rows(step)):
                found[batch["key"][row].decode()] = (batch["feature_ids"][row], batch["feature_vals"][row])
    return found


def check(folder: Path, raw: dict[str, np.ndarray], keys: list[str]) -> None:
    """Every way from rows to ids and values, for the prepared data in ``folder``."""
    schema = ResolvedSchema.load(folder / "data")
    servable = Servable(write_run(folder / "run", schema, {"name": "fm", "factors": 2}), schema)
    transform = servable.transform
    texts = {name: tf.constant(raw[name], tf.string) for name in schema.raw_columns}
    eager = transform(texts)
    ids, vals, bad, _ = (part.numpy() for part in eager)

    expected = [transform_row(schema, {name: cells[row] for name, cells in raw.items()}) for row in range(len(keys))]
    np.testing.assert_array_equal(ids, [row[0] for row in expected])
    np.testing.assert_array_max_ulp(vals, np.array([row[1] for row in expected], np.float32), 1)
    np.testing.assert_array_equal(bad, [row[2] for row in expected])

    loaded = saved_encoding(servable, transform, folder)
    saved = loaded.signatures["encode"](**texts)
    np.testing.assert_array_equal(saved["feature_ids"], ids)
    np.testing.assert_array_max_ulp(saved["feature_vals"].numpy(), vals, 1)
    np.testing.assert_array_equal(saved["bad"], bad)
    served = loaded.signatures["raw"](**texts)
    by_ids = loaded.signatures["serving_default"](feature_ids=tf.constant(ids), feature_vals=tf.constant(vals))
    np.testing.assert_allclose(served["logit"], by_ids["logit"], rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(served["bad_cells"], bad.sum(axis=1))

    records = records_of(folder / "data")
    assert set(records) == {key for key, wrong in zip(keys, bad.any(axis=1), strict=True) if not wrong}
    assert 0 < len(records) < len(keys)
    rejected = [json.loads(line) for file in (folder / "data/rejects").iterdir() for line in file.open()]
    reasons = {reject["key"]: reject["reason"] for reject in rejected}
    for row, key in enumerate(keys):
        if key in records:
            np.testing.assert_array_equal(records[key][0], ids[row])
            np.testing.assert_array_max_ulp(records[key][1], vals[row], 1)
        else:
            assert reasons[key] == schema.spec.bad_reason(schema.spec.fields[int(np.argmax(bad[row]))])


@FEW
@given(layouts, fields(), st.integers(0, 2**32))
def test_every_way_gives_the_same_ids_and_values(layout, chosen, seed):
    spec = schema_of(layout, chosen)
    log, rows = log_of(layout, seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "users.csv").write_text(USERS)
        (folder / "log").write_text(log)
        (folder / "schema.yaml").write_text(json.dumps(spec))
        options = PrepareOptions(
            schema=folder / "schema.yaml",
            inputs=[str(folder / "log")],
            output=str(folder / "data"),
            chunk_bytes=4000,
            max_reject_share=1.0,
        )
        prepare(options)
        parsed = FeatureSchema.load(folder / "schema.yaml")
        tables = read_side_tables(parsed, folder)
        assert tables is not None
        columns = {name: np.array([row[name].encode() for row in rows], object) for name in parsed.log_columns}
        raw = tables.join(columns)
        assert {cell for cell in raw["Colours"]} <= {b"", b"Red|Blue", b"Green|Blue"}
        check(folder, raw, [row["id"] for row in rows])


@pytest.mark.parametrize("seed", [1, 2])
def test_the_same_of_libfm_lines(tmp_path, seed):
    pick = random.Random(seed)
    fields = [
        {"name": "a", "kind": "libfm", "ids": [0, 10], "max_values": 2, "missing": "own"},
        {"name": "b", "kind": "libfm", "ids": [10, 14]},
    ]
    spec = {"name": "random", "format": {"kind": "libfm"}, "label": {}, "fields": fields}
    entries = ["1:1", "3:0.5", "9:2", "4:0", "11:1", "13:-2.5", "10:1e-3"]
    lines = []
    for number in range(ROWS):
        chosen = pick.sample(entries, pick.randrange(4))
        if number % 4 == 0:
            chosen.append(pick.choice(["99:1", "x", "3:nan", "11:1e39", "1:1:1"]))
        lines.append(" ".join([str(pick.randrange(2)), *chosen]))
    (tmp_path / "log").write_text("\n".join(lines))
    (tmp_path / "schema.yaml").write_text(json.dumps(spec))
    prepare(
        PrepareOptions(
            schema=tmp_path / "schema.yaml",
            inputs=[str(tmp_path / "log")],
            output=str(tmp_path / "data"),
            max_reject_share=1.0,
        )
    )
    raw = {"features": np.array([line.partition(" ")[2].encode() for line in lines], object)}
    check(tmp_path, raw, [f"log#{number}" for number in range(1, ROWS + 1)])
