"""``missing_values``: texts that count as an empty cell, on every path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from afm_ctr.analysis import Analysis, Analyzer
from afm_ctr.errors import UserError
from afm_ctr.features import FeatureTransform
from afm_ctr.rawlog import parse_log
from afm_ctr.rawlog.side import read_side_tables
from afm_ctr.schema import FeatureSchema, resolve, validate
from afm_ctr.statistics import Collector

VOCABULARY = {"kind": "vocabulary"}
FIELDS = [
    {"name": "site", "kind": "categorical", "encoding": VOCABULARY},
    {"name": "raw_site", "column": "site", "kind": "categorical", "encoding": VOCABULARY, "missing_values": []},
    {"name": "tags", "kind": "categorical", "separator": "|", "max_values": 2, "encoding": VOCABULARY},
    {"name": "met", "kind": "cross", "columns": ["site", "tags"], "encoding": VOCABULARY},
    {
        "name": "n",
        "kind": "numeric",
        "encoding": {"kind": "value", "standardise": True},
        "missing_values": ["-1", "NULL"],
    },
]
CONTENT: dict[str, Any] = {
    "name": "s",
    "format": {
        "kind": "delimited",
        "delimiter": "\t",
        "header": False,
        "columns": ["y", "w", "g", "site", "tags", "n"],
    },
    "label": {"column": "y", "negative": "*"},
    "weight": "w",
    "group": "g",
    "missing_values": [r"\N", "nan", "NULL"],
    "fields": FIELDS,
}
LOG = [
    ("1", "2", "g1", "a", "p|NULL|q", "5"),
    ("0", "1", r"\N", r"\N", "nan", "-1"),
    ("1", "1", "nan", "null", "NULL|NULL", "7"),
    ("no", "1", "", "NULL ", r"\N|p", "NULL"),
    ("NULL", "1", "g", "a", "p", "1"),
    ("1", "nan", "g", "a", "p", "1"),
]


def spec_of(**changes: Any) -> FeatureSchema:
    return validate(FeatureSchema, {**CONTENT, **changes}, "schema.yaml")


def write_log(folder: Path) -> Path:
    path = folder / "log.tsv"
    path.write_text("".join("\t".join(row) + "\n" for row in LOG))
    return path


def test_labels_weights_and_groups(tmp_path: Path) -> None:
    (parsed,) = parse_log(str(write_log(tmp_path)), spec_of())
    assert parsed.labels.tolist() == [1, 0, 1, 0]
    assert parsed.weights.tolist() == [2, 1, 1, 1]
    assert parsed.groups == [b"g1", None, None, None]
    assert [(r.line, r.reason, r.detail) for r in parsed.rejects] == [
        (5, "bad_label", "label 'NULL'"),
        (6, "bad_weight", "weight 'nan'"),
    ]


def test_a_real_label_that_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("-999\t1\tg\ta\tp\t1\n-998\t1\tg\ta\tp\t1\n")
    (parsed,) = parse_log(
        str(tmp_path / "log"), spec_of(label={"column": "y", "kind": "real"}, missing_values=["-999"])
    )
    assert parsed.labels.tolist() == [-998]
    assert [reject.reason for reject in parsed.rejects] == ["bad_label"]


def test_neither_vocabularies_nor_statistics_see_them(tmp_path: Path) -> None:
    spec = spec_of()
    (parsed,) = parse_log(str(write_log(tmp_path)), spec)
    analyzer = Analyzer(spec, 0)
    analyzer.add(parsed.columns, 0)
    found = Analysis.merge([analyzer.partial()])
    assert found.counts["site"] == {b"a": 1, b"null": 1, b"NULL ": 1}
    assert found.counts["raw_site"] == {b"a": 1, rb"\N": 1, b"null": 1, b"NULL ": 1}
    assert found.counts["tags"] == {b"p": 2, b"q": 1}
    assert found.counts["met"] == {b"a\x1fp|NULL|q": 1, b"null\x1fNULL|NULL": 1, b"NULL \x1f\\N|p": 1}
    assert (found.numbers["n"].count, found.numbers["n"].mean) == (2, 6.0)

    schema = resolve(spec, found)
    encoded = FeatureTransform(schema)({name: tf.constant(cells) for name, cells in parsed.columns.items()})
    assert not encoded.bad.numpy().any()
    collector = Collector(schema, len(parsed))
    collector.add(encoded.feature_ids.numpy(), parsed.labels)
    collector.add_sample(parsed.line_numbers, parsed.columns, encoded.feature_ids.numpy(), parsed.labels)
    statistics = {field.name: field for field in collector.partial().finish(schema, "train").fields}
    assert {name: field.missing for name, field in statistics.items()} == {
        "site": 1,
        "raw_site": 0,
        "tags": 2,
        "met": 2 - 1,
        "n": 2,
    }
    assert [(top.value, top.rows) for top in statistics["tags"].top] == [("p", 2), ("q", 1)]


def test_ids_of_a_row(tmp_path: Path) -> None:
    spec = spec_of()
    (parsed,) = parse_log(str(write_log(tmp_path)), spec)
    analyzer = Analyzer(spec, 0)
    analyzer.add(parsed.columns, 0)
    schema = resolve(spec, Analysis.merge([analyzer.partial()]))
    transform = FeatureTransform(schema)

    def slots(**cells: bytes) -> dict[str, int]:
        row = {name: tf.constant([cells.get(name, b"")]) for name in schema.raw_columns}
        return dict(zip([slot.name for slot in schema.slots], transform(row).feature_ids[0].numpy(), strict=True))

    empty = slots()
    assert not any(empty.values())
    assert slots(site=b"nan", tags=rb"\N|nan", n=b"NULL") == {**empty, "raw_site": schema.global_id("raw_site", 0)}
    assert slots(tags=b"NULL|q")["tags[0]"] == slots(tags=b"q")["tags[0]"] > 0
    assert slots(site=b" nan")["site"], "compared exactly"
    assert slots(site=b"Null")["site"], "compared exactly"


def test_keys_of_side_tables(tmp_path: Path) -> None:
    table = {
        "input": "t.csv",
        "format": {"kind": "delimited"},
        "key": "site",
        "columns": [{"name": "f", "flags": ["r"]}],
    }
    field = {"name": "f", "kind": "categorical", "encoding": {"kind": "hash", "buckets": 5}}
    spec = spec_of(side_tables={"t": table}, fields=[*FIELDS, field])
    (tmp_path / "t.csv").write_text("site,r\na,1\nb,NULL\n")
    tables = read_side_tables(spec, tmp_path)
    assert tables is not None
    found = tables.join({name: np.array([b"b", b"NULL"], object) for name in spec.log_columns})
    assert found["f"].tolist() == [b"", b""]
    (tmp_path / "t.csv").write_text("site,r\na,1\nNULL,1\n")
    with pytest.raises(UserError, match=r"t\.csv, line 3: the key is missing"):
        read_side_tables(spec, tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"missing_values": [None]}, "missing_values: .*null is not a cell text; put it in quotes"),
        ({"missing_values": [-999.0]}, "missing_values: .*-999.0 is not a cell text; put it in quotes"),
        ({"missing_values": "NULL"}, "missing_values: 'NULL': must be a list of cell texts"),
        ({"missing_value": ["NULL"]}, "missing_value: unknown key .did you mean 'missing_values'"),
        ({"fields": [{**FIELDS[0], "missing_values": [["x"]]}]}, r"fields\[0\].missing_values: .*is not a cell text"),
    ],
)
def test_a_wrong_list_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        spec_of(**changes)


def test_libfm_has_none() -> None:
    fields = [{"name": "u", "kind": "libfm", "ids": [0, 5]}]
    with pytest.raises(UserError, match="missing_values: a libfm line leaves out what is missing; remove it"):
        validate(
            FeatureSchema,
            {"name": "s", "format": {"kind": "libfm"}, "missing_values": ["x"], "fields": fields},
            "s.yaml",
        )


def test_a_schema_without_them_keeps_its_id() -> None:
    plain = resolve(spec_of(missing_values=[], fields=FIELDS[:1]), Analysis({"site": {}}, {}))
    assert "missing_values" not in plain.content()["spec"]
