"""Explanations against effects worked out the long way: take the pair out, compute the logit again."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import tensorflow as tf
from scipy.stats import spearmanr

from afm_ctr.errors import UserError
from afm_ctr.explain import explain, rank_correlation
from afm_ctr.explain.content import describe_slot
from afm_ctr.features import FeatureTransform
from afm_ctr.models import CTRModel
from tests import prepared
from tests.runs import every_kind, write_run

ROWS = 30  # of the split `test`


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepared.write(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def afm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("afm")
    return folder, write_run(folder, prepared.schema())


def logits_without(model: CTRModel, rows: dict[str, np.ndarray], left_out: int | None) -> np.ndarray:
    """The logit of an AFM in float64 loops, one pair less."""
    layer = model.interaction
    W, b, h, p = (np.asarray(v.numpy(), np.float64) for v in (layer.W, layer.b, layer.h, layer.p))
    linear, vectors = (np.asarray(model.table.columns[n].numpy(), np.float64) for n in ("linear", "vectors"))
    logits = []
    for ids, vals in zip(rows["feature_ids"], rows["feature_vals"].astype(np.float64), strict=True):
        logit = float(model.bias.numpy()) + sum(linear[i, 0] * x for i, x in zip(ids, vals, strict=True) if i)
        scores, values = [], []
        for pair, (i, j) in enumerate(model.pairs):
            if ids[i] and ids[j] and pair != left_out:
                product = vectors[ids[i]] * vectors[ids[j]] * vals[i] * vals[j]
                scores.append(h @ np.maximum(product @ W + b, 0))
                values.append(p @ product)
        if scores:
            weights = np.exp(np.array(scores) - max(scores))
            logit += len(scores) * np.sum(weights / weights.sum() * np.array(values))
        logits.append(logit)
    return np.array(logits)


def test_effects_are_those_of_leaving_the_pair_out(data, afm):
    folder, model = afm
    rows = prepared.rows_of("test", ROWS)
    explanation = explain(folder, data)
    assert explanation.rows == ROWS, "padding of the last batch is no row"
    whole = logits_without(model, rows, None)
    names = [(f"{'abcd'[i]}", f"{'abcd'[j]}") for i, j in model.pairs]
    effect = {}
    for number, fields in enumerate(names):
        change = whole - logits_without(model, rows, number)
        effect[fields] = np.std(change), np.mean(np.abs(change))
    assert [pair.rank for pair in explanation.pairs] == list(range(1, len(names) + 1))
    assert [pair.fields for pair in explanation.pairs] == sorted(names, key=lambda name: -effect[name][0])
    for pair in explanation.pairs:
        np.testing.assert_allclose((pair.effect, pair.mean_change), effect[pair.fields], atol=2e-5)
    assert sum(pair.attention for pair in explanation.pairs) == pytest.approx(1.0, abs=1e-5)
    expected = spearmanr(
        [pair.effect for pair in explanation.pairs], [pair.attention for pair in explanation.pairs]
    ).statistic
    assert explanation.rank_correlation == pytest.approx(expected)


def test_one_row(data, afm):
    folder, model = afm
    rows = {
        name: values[7:8] for name, values in prepared.rows_of("test", ROWS).items() if name.startswith("feature")
    }
    explanation = explain(folder, data, row=7)
    facts = explanation.row
    whole = logits_without(model, rows, None)
    assert (facts.key, facts.number, explanation.rows) == ("test-7", 7, 1)
    assert facts.logit == pytest.approx(whole[0], abs=1e-5)
    assert facts.score == pytest.approx(1 / (1 + np.exp(-whole[0])), abs=1e-6)
    number = {tuple("abcd"[slot] for slot in pair): place for place, pair in enumerate(model.pairs)}
    for pair in explanation.pairs:
        change = (whole - logits_without(model, rows, number[pair.fields]))[0]
        assert pair.effect == pytest.approx(change, abs=1e-5)
    sizes = [abs(pair.effect) for pair in explanation.pairs]
    assert sizes == sorted(sizes, reverse=True)
    # What is neither bias nor a slot's own term is what the pairs add together.
    pairs_only = facts.logit - facts.bias - sum(term for _, _, term in facts.linear)
    assert abs(pairs_only) > 1e-3


def test_fm_has_effects_and_no_attention(tmp_path, data):
    model = write_run(tmp_path, prepared.schema(), {"name": "fm", "factors": 3})
    explanation = explain(tmp_path, data, row=0)
    rows = prepared.rows_of("test", ROWS)
    ids, vals = rows["feature_ids"][0], rows["feature_vals"][0]
    vectors = model.table.columns["vectors"].numpy()
    for pair in explanation.pairs:
        i, j = ("abcd".index(name) for name in pair.fields)
        assert pair.effect == pytest.approx(float(vectors[ids[i]] @ vectors[ids[j]] * vals[i] * vals[j]), abs=1e-5)
        assert pair.attention is None and pair.attention_rank is None
    assert explanation.rank_correlation is None


def test_files_table_and_json(tmp_path, data, afm):
    from rich.console import Console

    for row in (None, 3):
        explanation = explain(afm[0], data, row=row, output=tmp_path)
        stem = "pairs" if row is None else "row-3"
        assert explanation.files == tuple(str(tmp_path / f"{stem}{end}") for end in (".csv", "-bars.png", "-map.png"))
        with open(explanation.files[0], encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
        assert [(line["first"], line["second"]) for line in lines] == [pair.fields for pair in explanation.pairs]
        for picture in explanation.files[1:]:
            with open(picture, "rb") as file:
                assert file.read(8) == b"\x89PNG\r\n\x1a\n"
        told = json.loads(json.dumps(explanation.to_json(2), allow_nan=False))
        assert len(told["pairs"]) == 2 and told["pairs_in_all"] == len(explanation.pairs)
        assert told["pairs"][0]["fields"] == list(explanation.pairs[0].fields)
        console = Console(record=True, width=120, file=open("/dev/null", "w"))  # noqa: SIM115
        console.print(explanation.table(3))
        text = console.export_text()
        assert explanation.pairs[0].name in text and "rank correlation" in text


def test_at_most_so_many_rows(data, afm):
    assert explain(afm[0], data, "train", max_rows=41).rows == 41


def test_mistakes_are_named(tmp_path, data, afm):
    with pytest.raises(UserError, match="rows 0 to 29"):
        explain(afm[0], data, row=ROWS)
    with pytest.raises(UserError, match="split 'tset'"):
        explain(afm[0], data, "tset")
    write_run(tmp_path / "lr", prepared.schema(), {"name": "lr"})
    with pytest.raises(UserError, match="'lr' has no pairs to explain"):
        explain(tmp_path / "lr", data)
    one = prepared.schema(fields=[{"name": "a", "kind": "categorical", "encoding": {"kind": "ids", "size": 3}}])
    write_run(tmp_path / "one", one)
    with pytest.raises(UserError, match=r"has 1 slot\(s\) and no pairs"):
        explain(tmp_path / "one", data)
    write_run(tmp_path / "other", prepared.schema(ids=13))
    with pytest.raises(UserError, match="foreign schema"):
        explain(tmp_path / "other", data)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        explain(afm[0], data, output=tmp_path / "file")


def test_rank_correlation_is_spearmans():
    rng = np.random.default_rng(0)
    first = rng.integers(0, 5, 40).astype(float)
    second = first + rng.normal(0, 2, 40)
    assert rank_correlation(first, second) == pytest.approx(spearmanr(first, second).statistic)
    assert rank_correlation(np.arange(4.0), np.array([1.0, 10.0, 100.0, 1000.0])) == pytest.approx(1.0)
    assert rank_correlation(np.ones(4), np.arange(4.0)) is None
    assert rank_correlation(np.ones(1), np.ones(1)) is None


def test_what_a_slot_holds_in_words():
    schema = every_kind()
    row = {"Age": "3", "site": "", "tags": "news|nobody", "user": "7", "price": "0.7", "hour": "h1", "at": ""}
    encoded = FeatureTransform(schema)({name: tf.constant([cell]) for name, cell in row.items()})
    ids, vals = encoded.feature_ids.numpy()[0], encoded.feature_vals.numpy()[0]
    held = {
        slot.name: describe_slot(schema, slot, int(i), float(v))
        for slot, i, v in zip(schema.slots, ids, vals, strict=True)
    }
    assert held == {
        "Age": f"value {(np.log(4) - 3.0) / 0.5:.6g}",
        "site": "missing",
        "tags[0]": "news (value 0.5)",
        "tags[1]": "unknown word (value 0.5)",
        "tags[2]": "absent",
        "user": "id 7",
        "price": "[0.5, 1.5)",
        "hour": "h1",
        "pair": "missing",
        "weekday": "absent",
    }
