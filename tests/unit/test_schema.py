"""Schemas as users write them, and what they are told when something is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from afm_ctr.errors import UserError
from afm_ctr.schema import FeatureSchema

GOOD = """\
name: shop
format: {kind: delimited, header: false, columns: [label, n, city, tags, user]}
label: {column: label, positive: ["1"]}
group: user
spaces: {place: {kind: ids, size: 10}}
fields:
  - {name: n, kind: numeric, encoding: {kind: value, log: true}, missing: {value: 0}}
  - {name: cut, column: n, kind: numeric, encoding: {kind: buckets, boundaries: [1, 2.5]}}
  - {name: city, kind: categorical, space: place}
  - {name: tags, kind: categorical, encoding: {kind: hash, buckets: 7}, separator: ",", max_values: 3}
"""

LIBFM = """\
name: lib
format: {kind: libfm}
label: {positive: ["1"]}
fields:
  - {name: a, kind: libfm, ids: [0, 10]}
  - {name: b, kind: libfm, ids: [10, 20]}
  - {name: c, kind: libfm, ids: [20, 30]}
"""

MISTAKES = yaml.safe_load(Path(__file__).with_name("schema_mistakes.yaml").read_text())
LAYERS = "".join(f"a{layer}: &a{layer} [{', '.join([f'*a{layer - 1}'] * 9)}]\n" for layer in range(1, 9))
ENDLESS = [
    ("name: shop", f"name: {'[' * 3000}{']' * 3000}", "nested too deeply"),
    ("name: shop", f"name: {'[' * 100_000}", "nested too deeply"),
    ("name: shop", f"name: {'{a: ' * 20_000}", "nested too deeply"),
    ("name: shop", f"name: shop\nx:\n  {'- ' * 20_000}", "nested too deeply"),
    ("name: shop", f"a0: &a0 [x,x,x,x,x,x,x,x,x]\n{LAYERS}", "aliases stand for too much"),
]


def load(tmp_path: Path, text: str) -> FeatureSchema:
    (tmp_path / "schema.yaml").write_text(text)
    return FeatureSchema.load(tmp_path / "schema.yaml")


def test_a_good_schema(tmp_path):
    spec = load(tmp_path, GOOD)
    assert spec.raw_columns == ("n", "city", "tags")
    assert spec.label is not None
    assert spec.label.negative == ("0",)
    assert spec.fields[2].missing == "absent"
    assert spec.bad_reason(spec.fields[0]) == "bad_number"
    assert spec.bad_reason(spec.fields[2]) == "bad_id"
    assert spec.bad_reason(spec.fields[3]) is None


def test_a_libfm_schema(tmp_path):
    spec = load(tmp_path, LIBFM)
    assert spec.raw_columns == ("features",)
    assert spec.label is not None
    assert spec.label.negative == ("-1", "0")


def test_texts_stay_texts(tmp_path):
    """YAML 1.1 would make truth values, octal and sexagesimal numbers of these."""
    spec = load(tmp_path, GOOD.replace('positive: ["1"]', "positive: [Yes, on, 010, 12:30, 4], negative: [No, ~x]"))
    assert spec.label is not None
    assert spec.label.positive == ("Yes", "on", "010", "12:30", "4")
    assert spec.label.negative == ("No", "~x")


def test_numbers_are_numbers(tmp_path):
    spec = load(tmp_path, GOOD.replace("[1, 2.5]", "[-1e-3, +2., .5e1]"))
    assert spec.fields[1].encoding.boundaries == (-0.001, 2.0, 5.0)


@pytest.mark.parametrize(("old", "new", "told"), [*MISTAKES["shop"], *ENDLESS])
def test_what_is_wrong_is_named(tmp_path, old, new, told):
    assert old in GOOD
    with pytest.raises(UserError) as caught:
        load(tmp_path, GOOD.replace(old, new, 1))
    text = str(caught.value)
    assert text.startswith(f"{tmp_path}/schema.yaml:")
    assert told in text
    assert "\n" not in text


@pytest.mark.parametrize(("old", "new", "told"), MISTAKES["libfm"])
def test_what_is_wrong_with_libfm_is_named(tmp_path, old, new, told):
    assert old in LIBFM
    with pytest.raises(UserError) as caught:
        load(tmp_path, LIBFM.replace(old, new, 1))
    assert told in str(caught.value)


def test_every_problem_is_told_in_one_line(tmp_path):
    text = GOOD.replace("buckets: 7", "buckets: 0").replace("size: 10", "size: x").replace("name: cut", "name: 1")
    with pytest.raises(UserError) as caught:
        load(tmp_path, text)
    for path in ("spaces.place.size", "fields[1].name", "fields[3].encoding.buckets"):
        assert path in str(caught.value)


def test_a_header_text_may_have_a_name(tmp_path):
    text = GOOD.replace(
        "header: false, columns: [label, n, city, tags, user]", "columns: [{name: n, header: no. sold}]"
    )
    assert load(tmp_path, text).raw_columns == ("n", "city", "tags")
    with pytest.raises(UserError, match="that header is named 'n'"):
        load(tmp_path, text.replace("no. sold", "user"))


def test_files_that_are_no_schema(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        FeatureSchema.load(tmp_path / "absent.yaml")
    with pytest.raises(UserError, match="must be a mapping of keys"):
        load(tmp_path, "- a\n")
    (tmp_path / "schema.yaml").write_bytes(b"name: \xff\n")
    with pytest.raises(UserError, match="UTF-8"):
        FeatureSchema.load(tmp_path / "schema.yaml")


def test_a_schema_cannot_change(tmp_path):
    spec = load(tmp_path, GOOD)
    with pytest.raises(ValueError, match="frozen"):
        spec.name = "other"


def test_the_package_needs_no_tensorflow():
    code = "import sys, afm_ctr.schema, afm_ctr.analysis; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
