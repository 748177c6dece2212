"""Ids, files and growth of resolved schemas."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import yaml

from afm_ctr.errors import UserError
from afm_ctr.schema import Analysis, FeatureSchema, NumberFacts, ResolvedSchema, resolve

SPEC = """
name: s
format: {kind: delimited}
spaces: {word: {kind: vocabulary, oov: 2, min_count: 2, capacity: 4}}
fields:
  - {name: a, kind: categorical, space: word, missing: own}
  - {name: n, kind: numeric, encoding: {kind: buckets, quantiles: 2}}
  - {name: b, kind: categorical, space: word, separator: " ", max_values: 2, within_field_pairs: false}
  - {name: v, kind: numeric, encoding: {kind: value, standardise: true}, missing: own}
  - {name: c, kind: categorical, encoding: {kind: ids, size: 5}}
  - {name: h, kind: categorical, encoding: {kind: hash, buckets: 3}}
"""

MISTAKES = yaml.safe_load(Path(__file__).with_name("schema_mistakes.yaml").read_text())


def spec_of(text: str = SPEC, **changes: str) -> FeatureSchema:
    for old, new in changes.values():
        assert old in text
        text = text.replace(old, new)
    return FeatureSchema.model_validate(yaml.safe_load(text))


def facts(words: dict[bytes, int], mean: float = 3.0) -> Analysis:
    numbers = {"n": NumberFacts(4, 0.0, 1.0, np.array([1.0, 2, 3, 4])), "v": NumberFacts(4, mean, 0.5)}
    return Analysis(counts={"word": words}, numbers=numbers)


@pytest.fixture
def parent() -> ResolvedSchema:
    return resolve(spec_of(), facts({b"x": 2, b"a": 2, b"z": 9, b"rare": 1}))


def owned(schema: ResolvedSchema) -> list[tuple[str, int, int, int]]:
    return [(r.space, r.local_start, r.start, r.size) for r in schema.ranges]


FIRST = [
    ("word", 0, 1, 6),  # 2 shared rows and room for 4 words
    ("a.missing", 0, 7, 1),
    ("n", 0, 8, 2),
    ("v", 0, 10, 1),
    ("v.missing", 0, 11, 1),
    ("c", 0, 12, 5),
    ("h", 0, 17, 3),
]


def test_layout(parent):
    assert owned(parent) == FIRST
    assert parent.feature_size == 20
    assert parent.vocabularies == {"word": (b"z", b"a", b"x")}  # by count, then by bytes; `rare` is too rare
    assert parent.statistics["n"].boundaries == (3.0,)
    assert (parent.statistics["v"].mean, parent.statistics["v"].std) == (3.0, 0.5)
    assert [slot.name for slot in parent.slots] == ["a", "n", "b[0]", "b[1]", "v", "c", "h"]
    assert [(slot.index, slot.field, slot.position) for slot in parent.slots][3] == (3, "b", 1)
    assert parent.num_slots == 7


def test_pairs(parent):
    pairs = [tuple(pair) for pair in parent.pairs.tolist()]
    assert parent.pairs.dtype == np.int32
    assert len(pairs) == 7 * 6 // 2 - 1
    assert (2, 3) not in pairs
    assert pairs == sorted(pairs)
    assert parent.pair_names[:3] == ["a x n", "a x b[0]", "a x b[1]"]
    within = resolve(spec_of(x=("within_field_pairs: false", "within_field_pairs: true")), facts({}))
    assert (2, 3) in [tuple(pair) for pair in within.pairs.tolist()]


def test_global_ids(parent):
    assert parent.global_id("c", 4) == 16
    np.testing.assert_array_equal(parent.global_id("word", np.array([0, 5])), [1, 6])
    np.testing.assert_array_equal(parent.local_ids("word", np.array([[1, 6], [0, 16]])), [[0, 5], [-1, -1]])
    with pytest.raises(ValueError, match="local ids 0 … 4, not 5"):
        parent.global_id("c", 5)
    with pytest.raises(ValueError, match="nowhere"):
        parent.global_id("nowhere", 0)


def test_save_and_load(parent, tmp_path):
    parent.save(tmp_path)
    for path in (tmp_path, tmp_path / "schema.yaml"):
        loaded = ResolvedSchema.load(path)
        assert loaded == parent
        assert loaded.id == parent.id
    assert (tmp_path / "vocab" / "word.txt").read_bytes() == b"z\na\nx\n"
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["schema.yaml", "vocab", "word.txt"]
    assert pickle.loads(pickle.dumps(parent)).id == parent.id


def test_texts_and_numbers_survive_the_file(tmp_path):
    text = SPEC.replace('separator: " "', 'separator: "1e5"').replace("name: s", 'name: "010"')
    text += "label: {column: y, positive: ['Yes', '1e3', 'null', ' ', \"a\\x85b\"], negative: '*'}\n"
    awkward = [1e-17, 0.1, 1 / 3, 1e22, 123456789.123456789]
    spec = spec_of(text)
    schema = resolve(spec, facts({}, mean=1 / 3))
    numbers = {"n": NumberFacts(5, 0.0, 1.0, np.array(awkward)), "v": NumberFacts(4, 1 / 3, 1e-300)}
    schema = resolve(spec_of(text, x=("quantiles: 2", "quantiles: 5")), Analysis({"word": {}}, numbers))
    schema.save(tmp_path)
    loaded = ResolvedSchema.load(tmp_path)
    assert loaded.id == schema.id
    assert loaded.statistics == schema.statistics
    assert loaded.spec == schema.spec


@pytest.mark.parametrize("entry", [b"\xff\xfe", b"\x00", b" lead", b"tab\t", "é\u2028".encode()])
def test_any_bytes_without_a_line_break_are_entries(tmp_path, entry):
    schema = resolve(spec_of(), facts({entry: 2, b"cr\r": 9, b"nl\n": 9}))
    assert schema.vocabularies["word"] == (entry,)
    schema.save(tmp_path)
    assert ResolvedSchema.load(tmp_path).vocabularies["word"] == (entry,)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_a_damaged_file_is_named(parent, tmp_path):
    parent.save(tmp_path)
    edit(tmp_path / "schema.yaml", "buckets: 3", "buckets: 4")
    with pytest.raises(UserError, match=r"schema\.yaml: id: .* edited or damaged"):
        ResolvedSchema.load(tmp_path)
    parent.save(tmp_path)
    edit(tmp_path / "vocab" / "word.txt", "a", "b")
    with pytest.raises(UserError, match=r"word\.txt: differs"):
        ResolvedSchema.load(tmp_path)
    (tmp_path / "vocab" / "word.txt").unlink()
    with pytest.raises(UserError, match=r"word\.txt: no such file"):
        ResolvedSchema.load(tmp_path)
    (tmp_path / "vocab" / "word.txt").mkdir()
    with pytest.raises(UserError, match=r"word\.txt: cannot be read: Is a directory"):
        ResolvedSchema.load(tmp_path)
    (tmp_path / "vocab" / "word.txt").rmdir()
    parent.save(tmp_path)
    edit(tmp_path / "schema.yaml", "format_version: 2", "format_version: 3")
    with pytest.raises(UserError, match="format_version: 3"):
        ResolvedSchema.load(tmp_path)
    (tmp_path / "schema.yaml").write_text(SPEC)
    with pytest.raises(UserError, match="is not a resolved schema"):
        ResolvedSchema.load(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        ResolvedSchema.load(tmp_path / "nowhere")


def test_growth_inside_the_capacity(parent):
    child = resolve(spec_of(), facts({b"z": 2, b"new": 3, b"rare": 1}, mean=77.0), parent)
    assert owned(child) == FIRST
    assert child.vocabularies["word"] == (b"z", b"a", b"x", b"new")
    assert child.statistics == parent.statistics
    assert child.parent_id == parent.id != child.id
    assert child.descends_from(parent.id)
    assert child.descends_from(child.id)
    assert not parent.descends_from(child.id)


def test_growth_beyond_the_capacity(parent):
    child = resolve(spec_of(), facts({b"n1": 5, b"n2": 4, b"n3": 4}), parent)
    assert owned(child) == [*FIRST, ("word", 6, 20, 2)]
    assert child.feature_size == 22
    assert child.global_id("word", np.array([5, 6, 7])).tolist() == [6, 20, 21]
    grown = resolve(spec_of(x=("capacity: 4", "capacity: 9"), y=("size: 5", "size: 7")), facts({b"n4": 2}), child)
    assert owned(grown) == [*FIRST, ("word", 6, 20, 2), ("word", 8, 22, 3), ("c", 5, 25, 2)]
    assert grown.vocabularies["word"] == (b"z", b"a", b"x", b"n1", b"n2", b"n3", b"n4")
    assert grown.lineage == (parent.id, child.id)
    assert grown.global_id("c", np.arange(7)).tolist() == [12, 13, 14, 15, 16, 25, 26]
    for space in ("word", "c", "h", "n", "v.missing"):
        size = sum(r.size for r in parent.ranges_of(space))
        np.testing.assert_array_equal(
            grown.global_id(space, np.arange(size)), parent.global_id(space, np.arange(size))
        )


def test_nothing_new_is_the_parent_itself(parent):
    assert resolve(spec_of(), facts({b"z": 5}), parent) is parent
    assert resolve(spec_of(), Analysis.empty(), parent) is parent


def test_a_grown_schema_survives_the_file(parent, tmp_path):
    child = resolve(spec_of(), facts({b"n1": 5, b"n2": 4, b"n3": 4}), parent)
    child.save(tmp_path)
    loaded = ResolvedSchema.load(tmp_path)
    assert loaded == child
    assert loaded.parent_id == parent.id


@pytest.mark.parametrize(("old", "new", "told"), MISTAKES["parent"])
def test_a_schema_that_does_not_continue_its_parent(parent, old, new, told):
    with pytest.raises(UserError) as caught:
        resolve(spec_of(x=(old, new)), facts({}), parent)
    assert told in str(caught.value)
    assert parent.id in str(caught.value)


def test_facts_that_are_not_there():
    with pytest.raises(UserError, match=r"field 'n' is fitted to the data.*prepare"):
        resolve(spec_of(), Analysis.empty())
    with pytest.raises(UserError, match="vocabulary 'word' is fitted"):
        resolve(spec_of(), Analysis(numbers=facts({}).numbers))


def test_a_vocabulary_over_its_capacity():
    with pytest.raises(UserError, match="5 values occur at least 2 times, and its capacity is 4"):
        resolve(spec_of(), facts({b"%d" % i: 2 for i in range(5)}))


def test_the_id_is_the_content(parent):
    again = resolve(spec_of(), facts({b"rare": 1, b"z": 9, b"x": 2, b"a": 2}))
    assert again.id == parent.id
    assert len(parent.id) == 16
    assert resolve(spec_of(), facts({b"x": 3, b"a": 2, b"z": 9})).id != parent.id
    assert resolve(spec_of(), facts({b"x": 2, b"a": 2, b"z": 9}, mean=3.0000001)).id != parent.id
    assert resolve(spec_of(x=("name: s\n", "name: t\n")), facts({b"x": 2, b"a": 2, b"z": 9})).id != parent.id
