"""Made-up logs: their shape, their determinism, and that the truth they state is the truth."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys

import numpy as np
import pytest

from afm_ctr.errors import UserError
from afm_ctr.synthetic import COLUMNS, PLANTED, Truth, make_logs
from afm_ctr.synthetic.logs import _Tally, render
from afm_ctr.synthetic.truth import CATEGORIES, CELLS, INTEGERS, Rows, token_hashes


def test_shape_of_the_lines(tmp_path):
    summary = make_logs(tmp_path / "logs.tsv", 2000, seed=3)
    lines = (tmp_path / "logs.tsv").read_bytes().decode().splitlines()
    assert len(lines) == summary.rows == summary.well_formed == 2000
    cells = [line.split("\t") for line in lines]
    assert {len(row) for row in cells} == {1 + CELLS}
    assert {row[0] for row in cells} == {"0", "1"}
    assert sum(row[0] == "1" for row in cells) == summary.clicks
    for row in cells:
        assert all(cell == "" or str(int(cell)) == cell for cell in row[1 : 1 + INTEGERS])
        assert all(cell == "" or (len(cell) == 8 and int(cell, 16) >= 0) for cell in row[1 + INTEGERS :])
    missing = [np.mean([row[1 + COLUMNS.index(name)] == "" for row in cells]) for name in ("I12", "I2", "C22", "C1")]
    np.testing.assert_allclose(missing, [0.77, 0.0, 0.76, 0.0], atol=0.04)
    assert min(int(row[2]) for row in cells) < 0, "the second integer column goes below zero, as Criteo's does"


def test_same_bytes_whatever_the_block_size_and_a_prefix_of_longer_logs(tmp_path):
    make_logs(tmp_path / "a", 1500, seed=5, malformed=0.1)
    make_logs(tmp_path / "b", 1500, seed=5, malformed=0.1, block_rows=7)
    make_logs(tmp_path / "c", 3001, seed=5, malformed=0.1, block_rows=1000)
    make_logs(tmp_path / "d", 1500, seed=6, malformed=0.1)
    a, b, c, d = ((tmp_path / name).read_bytes() for name in "abcd")
    assert a == b
    assert c.startswith(a)
    assert a != d


def test_gzip_holds_the_same_text_and_repeats_itself(tmp_path):
    make_logs(tmp_path / "plain.tsv", 500, seed=1)
    make_logs(tmp_path / "one.tsv.gz", 500, seed=1)
    make_logs(tmp_path / "two.tsv.gz", 500, seed=1)
    packed = (tmp_path / "one.tsv.gz").read_bytes()
    assert packed == (tmp_path / "two.tsv.gz").read_bytes()
    assert gzip.decompress(packed) == (tmp_path / "plain.tsv").read_bytes()
    assert not list(tmp_path.glob(".*")), "nothing is left beside the logs"


def test_malformed_lines_are_counted_by_kind(tmp_path):
    summary = make_logs(tmp_path / "logs.tsv", 20_000, seed=2, malformed=0.05)
    found = dict.fromkeys(summary.malformed, 0)
    for line in (tmp_path / "logs.tsv").read_bytes().splitlines():
        cells = line.split(b"\t")
        if len(cells) != 1 + CELLS:
            found["column_count"] += 1
        elif cells[0] not in (b"0", b"1"):
            found["bad_label"] += 1
        elif cells[1].startswith(b"x"):
            found["bad_number"] += 1
        else:
            try:
                line.decode()
            except UnicodeDecodeError:
                found["bad_utf8"] += 1
    assert found == summary.malformed
    assert sum(found.values()) == pytest.approx(1000, rel=0.15)
    assert min(found.values()) > 150
    assert summary.well_formed == 20_000 - sum(found.values())


def test_text_of_numbers_and_ids():
    integers = np.zeros((1, INTEGERS), np.int64)
    integers[0, :5] = (0, -3, 10, 9_999_999, 1_000_000)
    present = np.ones((1, CELLS), bool)
    present[0, 5] = present[0, -1] = False
    categories = np.arange(CATEGORIES, dtype=np.int64)[None]
    line = render(Rows(integers, categories, present, np.zeros(1), np.ones(1, bool)), np.array([-1]))
    cells = line.decode().rstrip("\n").split("\t")
    assert cells[:7] == ["1", "0", "-3", "10", "9999999", "1000000", ""]
    assert cells[-1] == ""
    assert cells[1 + INTEGERS] == f"{int(token_hashes(0, np.array([0]))[0]):08x}"


def test_planted_pairs_have_no_effect_of_their_own():
    truth = Truth(0)
    made, _ = truth.rows(0, 200_000)
    score = {
        name: values[made.categories[:, COLUMNS.index(name) - INTEGERS]] for name, values in truth.scores.items()
    }
    for pair in PLANTED:
        a, b = score[pair.first], score[pair.second]
        both = made.present[:, COLUMNS.index(pair.first)] & made.present[:, COLUMNS.index(pair.second)]
        a, b, logit = a[both], b[both], made.logit[both] - made.logit[both].mean()
        # Regression on standardised, independent variables: the coefficient is the mean of the product.
        assert np.mean(logit * a * b) == pytest.approx(pair.strength, abs=0.03)
        assert np.mean(logit * a) == pytest.approx(0.0, abs=0.03)
        assert np.mean(logit * b) == pytest.approx(0.0, abs=0.03)
        assert np.mean(a) == pytest.approx(0.0, abs=0.02)
        assert np.var(a) == pytest.approx(1.0, abs=0.05)


def test_rate_of_clicks_and_heavy_tails(tmp_path):
    summary = make_logs(tmp_path / "logs.tsv", 30_000, seed=9)
    assert summary.clicks / summary.rows == pytest.approx(0.25, abs=0.012)
    lower = make_logs(tmp_path / "lower.tsv", 30_000, seed=9, ctr=0.05)
    assert lower.clicks / lower.rows == pytest.approx(0.05, abs=0.01)
    made, _ = Truth(9).rows(0, 30_000)
    fifth = made.integers[:, 4]
    assert np.mean(fifth) > 5 * np.median(fifth)
    counts = np.sort(np.bincount(made.categories[:, 0]))[::-1]
    # Zipf: the most frequent id holds ln 2 / ln(size + 1) of the rows, twice as much as ids 2 and 3 each, roughly.
    assert counts[0] / 30_000 == pytest.approx(np.log(2) / np.log(581), rel=0.05)


def test_best_auc_and_loss_agree_with_direct_ones():
    from sklearn.metrics import log_loss, roc_auc_score

    made, _ = Truth(4).rows(0, 20_000)
    tally = _Tally()
    for start in range(0, 20_000, 5000):
        part = Rows(*(getattr(made, name)[start : start + 5000] for name in Rows.__dataclass_fields__))
        tally.add(part, np.full(5000, -1))
    auc, loss = tally.best()
    assert auc == pytest.approx(roc_auc_score(made.clicks, made.logit), abs=1e-5)
    assert loss == pytest.approx(log_loss(made.clicks, 1 / (1 + np.exp(-made.logit))), rel=1e-9)


def test_truth_file_names_pairs_and_scores(tmp_path):
    make_logs(tmp_path / "logs.tsv", 300, seed=8)
    told = json.loads((tmp_path / "logs.tsv.truth.json").read_text())
    assert [entry["pair"] for entry in told["planted_pairs"]] == [f"{p.first} x {p.second}" for p in PLANTED]
    cell = COLUMNS.index("C6")
    tokens = {line.split("\t")[1 + cell] for line in (tmp_path / "logs.tsv").read_text().splitlines()} - {""}
    assert tokens <= set(told["scores"]["C6"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rows": 0}, "rows is 0"),
        ({"rows": 5, "seed": -1}, "seed is -1"),
        ({"rows": 5, "malformed": 1.5}, "malformed is 1.5"),
        ({"rows": 5, "ctr": 0.0}, "ctr is 0.0"),
    ],
)
def test_impossible_arguments_are_named(tmp_path, options, words):
    with pytest.raises(UserError, match=words):
        make_logs(tmp_path / "logs.tsv", **options)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        make_logs(tmp_path / "file" / "logs.tsv", 5)
    for folder in (".", "/"):
        with pytest.raises(UserError, match=f"cannot write {folder}: Is a directory"):
            make_logs(folder, 5)


def test_needs_no_tensorflow():
    code = "import sys, afm_ctr.synthetic; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
