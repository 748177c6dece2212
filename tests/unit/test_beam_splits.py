"""Split rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from afm_ctr.errors import UserError
from afm_ctr.rawlog import LineParser, ParsedLines
from afm_ctr.schema import FeatureSchema
from beam_jobs.rows import fingerprint64
from beam_jobs.splits import NO_SPLIT, SPLITS, SplitRule, input_files, parse_rule, read_index

SPEC = FeatureSchema.model_validate(
    {
        "name": "t",
        "format": {"kind": "delimited", "header": False, "columns": ["user", "part"]},
        "key": "user",
        "fields": [{"name": "user", "kind": "categorical", "encoding": {"kind": "hash", "buckets": 9}}],
    }
)


def assign(
    rule: SplitRule, cells: Sequence[str], file_split: str | None = None, fingerprint: object = None
) -> list[str]:
    extra = [rule.column] if rule.column else []
    parsed: ParsedLines = LineParser(SPEC, extra=extra).parse([f"{cell},{cell}".encode() for cell in cells], "f", 1)
    rows = np.arange(len(cells))
    codes = rule.assign(parsed, rows, file_split, lambda rows: rows % 3, fingerprint or fingerprint64)  # type: ignore[arg-type]
    return ["-" if code == NO_SPLIT else SPLITS[code] for code in codes.tolist()]


def test_a_file_reached_by_two_paths_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "days").mkdir()
    for name in ("a.csv", "b.csv", "days/c.csv"):
        (tmp_path / name).write_bytes(b"1\n")
    (tmp_path / "0-link.csv").symlink_to("a.csv")
    (tmp_path / "0-days").symlink_to("days")
    (tmp_path / "copy.csv").write_bytes(b"1\n")
    monkeypatch.chdir(tmp_path)
    whole = str(tmp_path)
    for patterns, read, words in (
        (["a.csv", "b.csv"], ["a.csv", "b.csv"], []),
        (["a.csv", "a.csv", "*.csv"], ["a.csv", "b.csv", "copy.csv"], ["0-link.csv is the file a.csv"]),
        (["a.csv", "./a.csv"], ["a.csv"], ["./a.csv is the file a.csv"]),
        (["a.csv", f"{whole}/a.csv"], [f"{whole}/a.csv"], [f"a.csv is the file {whole}/a.csv"]),
        ([f"file://{whole}/b.csv", "b.csv"], [f"{whole}/b.csv"], [f"b.csv is the file {whole}/b.csv"]),
        (["a.csv", "b.csv", "./a.csv", "./b.csv"], ["a.csv", "b.csv"], ["./a.csv is the file a.csv and 1 more"]),
        (["0-link.csv"], ["0-link.csv"], []),
        (["*days/*"], ["days/c.csv"], ["0-days/c.csv is the file days/c.csv"]),
        (["days/../b.csv", "b.csv", "days/c.csv"], ["b.csv", "days/c.csv"], ["days/../b.csv is the file b.csv"]),
    ):
        said: list[str] = []
        found, _ = input_files(parse_rule(None), patterns, said.append)
        assert sorted(path for path, _ in found) == read, patterns
        assert said == [f"{word}: each file is read once" for word in words]
    # One file in two splits would be trained on and tested with.
    with pytest.raises(UserError, match=r"(a|0-link).csv is both train and test"):
        input_files(parse_rule("files:train=a.csv,test=0-link.csv"), [])
    _, splits = input_files(parse_rule("files:train=./a.csv,test=b.csv"), ["0-link.csv", "a.csv", "b.csv"])
    assert splits == {"a.csv": "train", "b.csv": "test"}


def test_fingerprints_are_those_of_hashed_ids() -> None:
    import tensorflow as tf

    texts = [b"a", b"", b"68fd1e64", b"\xff\0" * 50]
    expected = tf.strings.to_hash_bucket_fast(texts, 1_000_003).numpy()
    assert (fingerprint64(texts) % np.uint64(1_000_003)).tolist() == expected.tolist()
    assert len(fingerprint64([])) == 0


def test_hash_divides_the_line_of_fingerprints() -> None:
    quarter = 2**62

    def places(cells: Sequence[bytes]) -> np.ndarray:
        return np.array([0, 2 * quarter - 1, 2 * quarter, 3 * quarter - 1, 3 * quarter, 4 * quarter - 1], np.uint64)

    rule = parse_rule("hash:part:50/25/25")
    assert assign(rule, list("abcdef"), fingerprint=places) == ["train"] * 2 + ["valid"] * 2 + ["test"] * 2
    assert (
        assign(parse_rule("hash:part:0.75/0.25"), list("abcdef"), fingerprint=places) == ["train"] * 4 + ["test"] * 2
    )


def test_hash_keeps_equal_cells_together_and_the_shares() -> None:
    users = [f"user {i % 1000}" for i in range(3000)]
    found = assign(parse_rule("hash:user:80/10/10"), users)
    assert found[:1000] == found[1000:2000] == found[2000:]
    counts = Counter(found)
    assert 2200 < counts["train"] < 2600 and 200 < counts["valid"] < 400 and 200 < counts["test"] < 400
    # The record's key, where it is no column by that name.
    rule = parse_rule("hash:key:80/10/10")
    assert rule.column == "key"
    assert assign(SplitRule("hash", "", rule.asked, None, rule.ends), users) == found


def test_tail_takes_whole_rows_from_the_end() -> None:
    rule = parse_rule("tail:0.1/0.2").with_rows(19)
    assert rule.ends == (15, 16, 19)
    assert assign(rule, ["x"] * 19) == ["train"] * 15 + ["valid"] + ["test"] * 3
    assert assign(parse_rule("tail:0.3").with_rows(10), ["x"] * 10)[6:] == ["train", "test", "test", "test"]


@pytest.mark.parametrize(
    ("share", "rows", "test"), [("0.29", 100, 29), ("0.57", 100, 57), ("0.07", 300, 21), ("0.1", 30, 3)]
)
def test_shares_of_a_tail_are_decimals_and_not_floats(share: str, rows: int, test: int) -> None:
    """As a float 0.29 of 100 is 28.999999999999996: a row less."""
    assert parse_rule(f"tail:{share}").with_rows(rows).ends == (rows - test, rows)
    twice = parse_rule(f"tail:{share}/{share}").with_rows(rows) if 2 * test < rows else None
    assert twice is None or twice.ends == (rows - 2 * test, rows - test, rows)


def test_a_float_would_fall_short_of_a_share() -> None:
    assert (
        int(100 * 0.29) == 28 and int(300 * 0.07) == 21 and int(100 * 0.57) == 56
    )  # or the test above shows nothing


def test_column_files_index_and_none() -> None:
    assert assign(parse_rule("column:part"), ["test", "train", "valid", "Train", ""]) == [
        "test",
        "train",
        "valid",
        "-",
        "-",
    ]
    assert assign(parse_rule("files:train=a,test=b"), ["x"], file_split="test") == ["test"]
    assert assign(parse_rule("index:f"), ["x"] * 4) == ["train", "valid", "test", "train"]
    assert assign(parse_rule(None), ["x"] * 2) == ["train"] * 2


@pytest.mark.parametrize(
    "text",
    [
        "random:0.1",
        "hash:80/10/10",
        "hash:c:80",
        "hash:c:80/0/20",
        "hash:c:a/b",
        "tail:0.5/0.5",
        "tail:",
        "tail:1/0",
        "tail:0.7/0.6",
        "column:",
        "index:",
        "files:a.csv",
        "files:dev=a.csv",
    ],
)
def test_a_rule_of_no_form_is_refused_by_its_text(text: str) -> None:
    with pytest.raises(UserError, match=f"--split {text}: "):
        parse_rule(text)


def test_files_of_a_rule(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv", "c,d.csv"):
        (tmp_path / name).write_text("x")
    rule = parse_rule(f"files:train={tmp_path}/a.csv,test={tmp_path}/c,d.csv")
    assert rule.globs[1] == ("test", f"{tmp_path}/c,d.csv")
    rule = parse_rule(f"files:train={tmp_path}/a.csv,train={tmp_path}/b.csv,test={tmp_path}/c*")
    assert rule.asked == ("train", "test")
    found, splits = input_files(rule, [])
    assert [Path(path).name for path, _ in found] == ["a.csv", "b.csv", "c,d.csv"]
    assert list(splits.values()) == ["train", "train", "test"]
    assert input_files(rule, [f"{tmp_path}/*"]) == (found, splits)
    with pytest.raises(UserError, match=r"c,d.csv is in a split but not --input"):
        input_files(rule, [f"{tmp_path}/[ab].csv"])
    with pytest.raises(UserError, match=r"b.csv is both train and test"):
        input_files(parse_rule(f"files:train={tmp_path}/*,test={tmp_path}/b*"), [])
    with pytest.raises(UserError, match=r"no file matches .*nothing"):
        input_files(parse_rule(None), [f"{tmp_path}/nothing*"])
    with pytest.raises(UserError, match="is a folder; name its files"):
        input_files(parse_rule(None), [str(tmp_path)])


def test_an_index_names_every_row_once(tmp_path: Path) -> None:
    path = tmp_path / "index.txt"

    def read(text: str, rows: int = 3) -> list[int]:
        path.write_text(text)
        return read_index(parse_rule(f"index:{path}"), rows).tolist()

    assert read("train\ntest\r\nvalid") == [0, 2, 1]
    assert read("2\ttrain\n0\ttest\n1\tvalid\n") == [2, 1, 0]
    for text, message in [
        ("train\ntest\n", "names 2 rows; the input has 3 data rows"),
        ("train\ntest\ntrain\ntrain\n", "line 4: row 3"),
        ("train\n\ntrain\n", "line 2: ''"),
        ("0\ttrain\n0\ttest\n1\ttest\n", "line 2: row 0 .* named twice"),
        ("x\ttrain\n", "line 1: 'x\\\\ttrain'"),
        ("9" * 5000 + "\ttrain\n", "line 1: '9{80}' is not SPLIT or ROW<TAB>SPLIT"),
    ]:
        with pytest.raises(UserError, match=message):
            read(text)
