"""Schemas as users write them, and what they are told when something is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "{kind: hash, buckets",
            "{kind: hash, bukets",
            "fields[3].encoding.bukets: unknown key (did you mean 'buckets'?)",
        ),
        ("name: shop", "name: shop\nfeilds: []", "feilds: unknown key (did you mean 'fields'?)"),
        ("buckets: 7", "buckets: 0", "fields[3].encoding.buckets: 0: must be greater than or equal to 1"),
        ("buckets: 7", "buckets: many", "fields[3].encoding.buckets: 'many': must be a valid integer"),
        ("buckets: 7", "buckets: true", "fields[3].encoding.buckets: True: must be a valid integer"),
        ("kind: hash", "kind: hsh", "fields[3].encoding.kind: 'hsh': must be one of 'hash', 'vocabulary', 'ids'"),
        ("kind: hash, ", "", "fields[3].encoding.kind: must be given"),
        ("boundaries: [1, 2.5]", "boundaries: []", "boundaries: []: must have at least 1 of them"),
        ("boundaries: [1, 2.5]", "boundaries: [x]", "fields[1].encoding.boundaries[0]: 'x': must be a valid number"),
        ("{kind: hash, buckets: 7}", "hash", "fields[3].encoding: 'hash': must be a mapping of keys"),
        ("{kind: hash, buckets: 7}", "{kind: hash}", "fields[3].encoding.buckets: must be given"),
        ("encoding: {kind: hash, buckets: 7}, ", "", "fields[3].encoding: must be given (or `space`"),
        (
            "space: place",
            "space: plcae",
            "fields[2].space: 'plcae': there is no such id space (did you mean 'place'?)",
        ),
        ("space: place", "space: place, encoding: {kind: ids, size: 3}", "fields[2].space: must not be given with"),
        ("spaces: {", "spaces: {other: {kind: ids, size: 3}, ", "spaces.other: no field says `space: other`"),
        ("spaces: {", "spaces: {9: {kind: ids, size: 3}, ", "spaces[9]: 9: must be a valid string"),
        ("name: cut", "name: n", "fields[1].name: 'n': an earlier field has this name"),
        ("name: cut", "name: place", "fields[1].name: 'place' is also a shared id space"),
        ("name: cut", "name: 2nd", "fields[1].name: '2nd': must fit [A-Za-z][A-Za-z0-9_]*"),
        ("column: n", "column: nn", "fields[1].column: 'nn': the log has no such column (did you mean 'n'?)"),
        ("group: user", "group: usr", "group: 'usr': the log has no such column (did you mean 'user'?)"),
        ("group: user", "weight: label", "weight: 'label' is the label's column"),
        ("column: label", "column: n", "fields[0]: reads 'n', the label's column"),
        ("max_values: 3", "max_values: 0", "fields[3].max_values: 0: must be greater than"),
        ('separator: ",", ', "", "fields[3].max_values: 3 values need a `separator`"),
        (
            "space: place}",
            "space: place, keep: last}",
            "fields[2].keep: a cell without a `separator` is one value",
        ),
        ("max_values: 3}", "max_values: 3, keep: newest}", "fields[3].keep: 'newest': must be"),
        ("{value: 0}", "{value: .nan}", "fields[0].missing.value: nan: must be a finite number"),
        ("{value: 0}", "nought", "fields[0].missing: 'nought': must be 'absent' or 'own'"),
        ("{value: 0}", "{valeu: 0}", "fields[0].missing.valeu: unknown key (did you mean 'value'?)"),
        (
            "boundaries: [1, 2.5]}",
            "boundaries: [2, 2]}",
            "fields[1].encoding.boundaries: [2, 2]: must be strictly increasing",
        ),
        ("boundaries: [1, 2.5]}", "quantiles: 3, log_square: true}", "give exactly one of `quantiles`, `boundaries`"),
        (
            "boundaries: [1, 2.5]}",
            "quantiles: 1}",
            "fields[1].encoding.quantiles: 1: must be greater than or equal to 2",
        ),
        ("2.5]}", "2.5]}, missing: {value: 1}", "fields[1].missing: a number for missing cells needs"),
        ('positive: ["1"]', 'positive: ["4"]', "label.negative: must be given with `positive`"),
        ('positive: ["1"]', 'positive: ["1"], negative: ["1"]', "label.negative: '1' is positive too"),
        ('positive: ["1"]', "positive: [true]", "label.positive: [True]: true is not a cell text; put it in quotes"),
        ('positive: ["1"]', 'kind: real, positive: ["1"]', "label.positive: belongs to a binary label"),
        (
            "group: user",
            "negative_sampling: {rate: 0, correct: logit}",
            "negative_sampling.rate: 0: must be greater than 0",
        ),
        ("group: user", "negative_sampling: {rate: 0.5}", "negative_sampling.correct: must be given"),
        ("columns: [label, n,", "columns: [label, n, n,", "format.columns[2].name: 'n' is listed twice"),
        (
            "columns: [label,",
            "columns: [{name: label, header: L},",
            "format.columns[0].header: there is no header line",
        ),
        (", columns: [label, n, city, tags, user]", "", "format.columns: must list every column in file order"),
        (
            "kind: delimited,",
            "kind: delimited, delimiter: ab,",
            "format.delimiter: 'ab': must be one ASCII character",
        ),
        (
            "kind: categorical, space: place",
            "kind: libfm, ids: [0, 3]",
            "fields[2].kind: 'libfm': needs `format: {kind: libfm}`",
        ),
        ("name: shop", "name: shop\nname: twice", ":2:1: not valid YAML: the key 'name' is given twice"),
        ("name: shop", "name: [shop", "not valid YAML"),
        ("name: shop", f"name: {'[' * 3000}{']' * 3000}", "nested too deeply"),
        ("name: shop", "name: &a [*a]", "aliases stand for too much"),
        (
            "name: shop",
            "a: &a [x,x,x,x,x,x,x,x,x]\n"
            + "".join(f"a{i}: &a{i} {[f'*a{i - 1}' * bool(i - 1) or '*a'] * 9}\n" for i in range(1, 9)).replace(
                "'", ""
            ),
            "aliases stand for too much",
        ),
        (", columns: [label, n, city, tags, user]", ", columns: label", "format.columns: 'label': must be a list"),
        ("name: tags, kind", "name: self, kind", "fields[3].name: 'self': no signature takes a word of Python"),
        ("name: tags, kind", "name: class, kind", "choose another, with `header: class` for the log's"),
        ("buckets: 7", f"buckets: {10**22}", "must be at most 281474976710656"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, old, new, told):
    assert old in GOOD
    with pytest.raises(UserError) as caught:
        load(tmp_path, GOOD.replace(old, new, 1))
    text = str(caught.value)
    assert text.startswith(f"{tmp_path}/schema.yaml:")
    assert told in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("ids: [10, 20]", "ids: [9, 20]", "fields[1].ids: [9, 20]: meets the ids of field 'a'"),
        ("ids: [0, 10]", "ids: [0, 40]", "fields[2].ids: [20, 30]: meets the ids of field 'a'"),
        ("ids: [0, 10]", "ids: [5, 5]", "fields[0].ids: [5, 5]: must be [lo, hi) with lo < hi"),
        (
            "kind: libfm, ids: [0, 10]",
            "kind: categorical, encoding: {kind: ids, size: 3}",
            "fields[0].kind: 'categorical'",
        ),
        ("label: {", "label: {column: y, ", "label.column: 'y': a libfm label is the column 'label'"),
        ("label: {", "key: k\nlabel: {", "key: 'k': a libfm line has no columns"),
    ],
)
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
