"""Time fields, crosses and vocabularies of the most frequent values, as a schema holds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from afm_ctr.errors import UserError
from afm_ctr.explain.content import describe_slot
from afm_ctr.sample_rows import made_up_rows
from afm_ctr.schema import Analysis, FeatureSchema, ResolvedSchema, resolve, time_layout, validate

SPEC = """
name: s
format: {kind: delimited, header: false, columns: [at, a, b, n]}
spaces: {word: {kind: vocabulary, top: 2}, code: {kind: ids, size: 4}}
fields:
  - {name: hour, column: at, kind: time, format: "%y%m%d%H", part: hour, missing: own}
  - {name: day, column: at, kind: time, format: "%y%m%d%H", part: weekday}
  - {name: pair, kind: cross, columns: [a, b], encoding: {kind: vocabulary, min_count: 2}, missing: own}
  - {name: both, kind: cross, columns: [b, a], space: word}
  - {name: a, kind: categorical, space: word}
  - {name: code, column: n, kind: categorical, space: code}
"""
FACTS = Analysis(counts={"word": {b"x": 3, b"z": 2, b"y": 2, b"\n": 9}, "pair": {b"a\x1fb": 2, b"rare\x1fb": 1}})

MISTAKES = yaml.safe_load(Path(__file__).with_name("schema_mistakes.yaml").read_text())


def spec_of(*changes: tuple[str, str]) -> FeatureSchema:
    text = SPEC
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    return validate(FeatureSchema, yaml.safe_load(text), "schema.yaml")


@pytest.fixture(scope="module")
def schema() -> ResolvedSchema:
    return resolve(spec_of(), FACTS)


def test_columns_and_spaces(schema):
    spec = schema.spec
    assert spec.raw_columns == spec.log_columns == ("at", "a", "b", "n")
    assert [spec.bad_reason(field) for field in spec.fields] == ["bad_time", "bad_time", None, None, None, "bad_id"]
    assert spec.space_of(spec.fields[3]).name == spec.space_of(spec.fields[4]).name == "word"
    owned = [(r.space, r.start, r.size) for r in schema.ranges]
    assert owned == [
        ("hour", 1, 24),
        ("hour.missing", 25, 1),
        ("day", 26, 7),
        ("pair", 33, 2),
        ("pair.missing", 35, 1),
        ("word", 36, 3),
        ("code", 39, 4),
    ]
    assert [slot.name for slot in schema.slots] == ["hour", "day", "pair", "both", "a", "code"]
    assert len(schema.pairs) == 15


def test_the_most_frequent_values_and_ties_by_bytes(schema):
    assert schema.vocabularies == {"pair": (b"a\x1fb",), "word": (b"x", b"y")}


def test_top_decides_by_the_new_data_alone_when_a_schema_grows(schema):
    """An entry stays; what is among the most frequent now and not known yet is appended."""
    grown = resolve(spec_of(), Analysis(counts={"word": {b"x": 9, b"new": 5, b"other": 4}, "pair": {}}), schema)
    assert grown.vocabularies["word"] == (b"x", b"y", b"new")
    assert grown.descends_from(schema.id)
    assert resolve(spec_of(), Analysis(counts={"word": {b"x": 9, b"y": 5, b"z": 4}}), schema) is schema


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"%y%m%d%H", part: hour', "iso, part: hour"),
        ("columns: [a, b], enc", "columns: [b, n], enc"),
        ("top: 2", "top: 3"),
    ],
)
def test_what_may_differ_from_the_parent(schema, old, new):
    assert resolve(spec_of((old, new)), FACTS, schema).descends_from(schema.id)


@pytest.mark.parametrize(("old", "new", "told"), MISTAKES["kinds_of_parent"])
def test_what_may_not(schema, old, new, told):
    with pytest.raises(UserError) as caught:
        resolve(spec_of((old, new)), FACTS, schema)
    assert told in str(caught.value)


@pytest.mark.parametrize(("old", "new", "told"), MISTAKES["kinds"])
def test_what_is_wrong_is_named(old, new, told):
    with pytest.raises(UserError) as caught:
        spec_of((old, new))
    assert told in str(caught.value)


def test_places_of_directives():
    layout = time_layout("%d.%m.%Y %H:%M")
    assert layout.places == {"d": (0, 2), "m": (3, 2), "Y": (6, 4), "H": (11, 2), "M": (14, 2)}
    assert layout.sample == "00.00.0000 00:00"


def test_the_file_says_it_all(schema, tmp_path):
    schema.save(tmp_path)
    loaded = ResolvedSchema.load(tmp_path)
    assert loaded == schema
    assert loaded.id == schema.id


def test_a_key_that_is_at_its_default_does_not_change_the_id(schema):
    assert resolve(spec_of(("space: word", "space: word, missing: absent")), FACTS).id == schema.id


def test_made_up_rows_and_their_words(schema):
    import tensorflow as tf

    from afm_ctr.features import FeatureTransform

    rows = made_up_rows(schema, 5)
    columns = {name: tf.constant([row[name] for row in rows]) for name in schema.raw_columns}
    encoded = FeatureTransform(schema)(columns)
    assert not encoded.bad.numpy().any()
    assert (encoded.feature_ids.numpy()[:-1] > 0).all()
    said: dict[str, set[Any]] = {slot.name: set() for slot in schema.slots}
    for ids, vals in zip(encoded.feature_ids.numpy(), encoded.feature_vals.numpy(), strict=True):
        for slot in schema.slots:
            said[slot.name].add(describe_slot(schema, slot, int(ids[slot.index]), float(vals[slot.index])))
    assert {"00 h", "05 h", "missing"} <= said["hour"]
    assert {"Monday", "absent"} <= said["day"]
    assert said["pair"] <= {"a & b", "unknown word", "missing"}
    assert describe_slot(schema, schema.slots[2], schema.global_id("pair", 1), 1.0) == "a & b"
