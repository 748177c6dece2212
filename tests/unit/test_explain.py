"""Explanations against effects worked out the long way: take the pair out, compute the logit again."""

from __future__ import annotations

import csv
import html
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from scipy.stats import spearmanr

from afm_ctr.cli import model as model_commands
from afm_ctr.errors import UserError
from afm_ctr.explain import Agreement, effects, explain, rank_correlation, table
from afm_ctr.explain.content import describe_slot
from afm_ctr.explain.page import add_trust, page_of
from afm_ctr.explain.tables import share
from afm_ctr.explain.trust import agreement_of, interval
from afm_ctr.features import FeatureTransform
from afm_ctr.models import CTRModel
from afm_ctr.models.afm import AFM
from afm_ctr.schema import ResolvedSchema
from afm_ctr.webpage import Page
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


@pytest.fixture(scope="module")
def explanation(data, afm):
    """Of the whole split, with two requests; to be read only."""
    return explain(afm[0], data, requests=2)


def logits_without(model: CTRModel, rows: dict[str, np.ndarray], *left_out: int) -> np.ndarray:
    """The logit of an AFM in float64 loops, without some pairs."""
    layer = model.interaction
    W, b, h, p = (np.asarray(v.numpy(), np.float64) for v in (layer.W, layer.b, layer.h, layer.p))
    linear, vectors = (np.asarray(model.table.columns[n].numpy(), np.float64) for n in ("linear", "vectors"))
    logits = []
    for ids, vals in zip(rows["feature_ids"], rows["feature_vals"].astype(np.float64), strict=True):
        logit = float(model.bias.numpy()) + sum(linear[i, 0] * x for i, x in zip(ids, vals, strict=True) if i)
        scores, values = [], []
        for pair, (i, j) in enumerate(model.pairs):
            if ids[i] and ids[j] and pair not in left_out:
                product = vectors[ids[i]] * vectors[ids[j]] * vals[i] * vals[j]
                scores.append(h @ np.maximum(product @ W + b, 0))
                values.append(p @ product)
        if scores:
            weights = np.exp(np.array(scores) - max(scores))
            scale = len(scores) if layer.options.scale_by_pairs else 1
            logit += scale * np.sum(weights / weights.sum() * np.array(values))
        logits.append(logit)
    return np.array(logits)


@pytest.mark.parametrize("scaled", [True, False])
def test_effects_are_those_of_leaving_the_pair_out(tmp_path, data, afm, explanation, scaled):
    model = afm[1]
    if not scaled:
        model = write_run(tmp_path, prepared.schema(), {"name": "afm", "factors": 4})
        explanation = explain(tmp_path, data)
    rows = prepared.rows_of("test", ROWS)
    assert explanation.rows == ROWS, "padding of the last batch is no row"
    whole = logits_without(model, rows)
    names = [(f"{'abcd'[i]}", f"{'abcd'[j]}") for i, j in model.pairs]
    effect = {}
    for number, fields in enumerate(names):
        change = whole - logits_without(model, rows, number)
        effect[fields] = np.std(change), np.mean(np.abs(change))
    movement = sum(mean for _, mean in effect.values())
    assert [pair.rank for pair in explanation.pairs] == list(range(1, len(names) + 1))
    assert [pair.fields for pair in explanation.pairs] == sorted(names, key=lambda name: -effect[name][0])
    for pair in explanation.pairs:
        np.testing.assert_allclose((pair.effect, pair.mean_change), effect[pair.fields], atol=2e-5)
        assert pair.effect_share == pytest.approx(effect[pair.fields][1] / movement, abs=1e-5)
    assert sum(pair.attention for pair in explanation.pairs) == pytest.approx(1.0, abs=1e-5)
    inputs = model.inputs_of({name: tf.constant(rows[name]) for name in ("feature_ids", "feature_vals")})
    rest = np.sum(inputs.linear, axis=1) + model.bias.numpy()
    assert sum(pair.contribution for pair in explanation.pairs) == pytest.approx(np.mean(whole - rest), abs=1e-5)
    effects_found = [pair.effect for pair in explanation.pairs]
    expected = spearmanr(effects_found, [pair.attention for pair in explanation.pairs]).statistic
    assert explanation.rank_correlation == pytest.approx(expected)
    # The length of each pair's part of what is pooled, in float64 loops.
    attention, vectors = np.asarray(model.interaction.explain(inputs), np.float64), np.asarray(inputs.vectors)
    lengths = {
        fields: np.sum(attention[:, number] * np.sqrt(np.sum((vectors[:, i] * vectors[:, j]) ** 2, axis=1)))
        for number, (fields, (i, j)) in enumerate(zip(names, model.pairs, strict=True))
    }
    weighted = [pair.weighted_attention for pair in explanation.pairs]
    np.testing.assert_allclose(
        weighted, [lengths[pair.fields] / sum(lengths.values()) for pair in explanation.pairs], rtol=1e-4
    )
    assert explanation.agreement.weighted == pytest.approx(spearmanr(effects_found, weighted).statistic)


def several_values(within: bool = True) -> ResolvedSchema:
    """The schema of :mod:`tests.prepared` with one field of two values in place of ``b`` and ``c``."""
    ids = {"kind": "categorical", "encoding": {"kind": "ids", "size": prepared.IDS}}
    several = {"name": "b", "separator": "|", "max_values": 2, "within_field_pairs": within, **ids}
    return prepared.schema(fields=[{"name": "a", **ids}, several, {"name": "d", **ids}])


def several_rows(folder: Path, schema: ResolvedSchema) -> dict[str, np.ndarray]:
    """Write rows of it: values of ``b`` fill its slots from the first."""
    rows = prepared.rows_of("test", ROWS)
    ids, vals = rows["feature_ids"].copy(), rows["feature_vals"].copy()
    ids[:, 2] = np.where(ids[:, 2] > 0, ids[:, 2] - prepared.IDS, 0)  # the ids of its first slot
    ids[:, 3] = np.where(ids[:, 3] > 0, ids[:, 3] - prepared.IDS, 0)
    ids[:, 2], vals[:, 2] = np.where(ids[:, 1] > 0, ids[:, 2], 0), np.where(ids[:, 1] > 0, vals[:, 2], 0)
    prepared.write(folder, {"test": ROWS}, schema, feature_ids=ids, feature_vals=vals)
    return {"feature_ids": ids, "feature_vals": vals}


@pytest.mark.parametrize(("scaled", "within"), [(True, True), (False, False)])
def test_a_field_of_several_values_is_taken_out_whole(tmp_path: Path, scaled: bool, within: bool) -> None:
    schema = several_values(within)
    rows = several_rows(tmp_path / "data", schema)
    options = {"name": "afm", "factors": 4, "attention": 3, "scale_by_pairs": scaled}
    model = write_run(tmp_path / "run", schema, options)
    explanation = explain(tmp_path / "run", tmp_path / "data", requests=1)
    owner = [slot.field for slot in schema.slots]
    groups: dict[tuple[str, str], list[int]] = {}
    for number, (i, j) in enumerate(model.pairs):
        groups.setdefault((owner[i], owner[j]), []).append(number)
    assert ("b", "b") in groups or not within
    whole, present = logits_without(model, rows), rows["feature_ids"] > 0
    changes = {names: whole - logits_without(model, rows, *members) for names, members in groups.items()}
    movement = sum(np.mean(np.abs(change)) for change in changes.values())
    assert [pair.fields for pair in explanation.pairs] == sorted(groups, key=lambda names: -np.std(changes[names]))
    slots = {pair.fields: pair for pair in explanation.slots}
    for pair in explanation.pairs:
        members = groups[pair.fields]
        assert pair.slot_pairs == len(members)
        change = changes[pair.fields]
        np.testing.assert_allclose(
            (pair.effect, pair.mean_change), (np.std(change), np.mean(np.abs(change))), atol=2e-5
        )
        assert pair.effect_share == pytest.approx(np.mean(np.abs(change)) / movement, abs=1e-5)
        of = [slots[schema.slots[i].name, schema.slots[j].name] for i, j in model.pairs[members]]
        assert pair.attention == pytest.approx(sum(one.attention for one in of), rel=1e-6)
        assert pair.contribution == pytest.approx(sum(one.contribution for one in of), rel=1e-5, abs=1e-7)
        assert pair.weighted_attention == pytest.approx(sum(one.weighted_attention for one in of), rel=1e-5)
        either = np.any([present[:, i] & present[:, j] for i, j in model.pairs[members]], axis=0)
        assert pair.present == either.mean()
    ab = changes["a", "b"]
    each = sum(whole - logits_without(model, rows, number) for number in groups["a", "b"])
    assert np.abs(ab - each).max() > 1e-3, "slots share attention: their single changes do not add up"
    assert {pair.fields for pair in explanation.requests[0].pairs} <= set(groups)
    for pair in explanation.requests[0].pairs:
        assert pair.effect == pytest.approx(changes[pair.fields][0], abs=2e-5)


def test_pairs_of_slots_have_a_table_of_their_own(tmp_path: Path) -> None:
    schema = several_values()
    several_rows(tmp_path / "data", schema)
    model = write_run(tmp_path / "run", schema)
    explanation = explain(tmp_path / "run", tmp_path / "data", output=tmp_path / "out")
    with open(tmp_path / "out" / "pairs-slots.csv", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [(line["first"], line["second"]) for line in lines] == [pair.fields for pair in explanation.slots]
    assert len(lines) == len(model.pairs) and {line["slot_pairs"] for line in lines} == {"1"}
    page = (tmp_path / "out" / "pairs.html").read_text(encoding="utf-8")
    assert "all 6 pairs of slots" in page and "b[0] x d" in page and "all 6 pairs<" not in page
    assert len(explanation.to_json(2)["slots"]) == 2 and len(explanation.to_json()["pairs"]) == 4


def test_sums_where_pairs_do_not_influence_one_another_and_slots_of_a_single_field(tmp_path: Path) -> None:
    schema = several_values()
    several_rows(tmp_path / "data", schema)
    write_run(tmp_path / "fm", schema, {"name": "fm", "factors": 3})
    explanation = explain(tmp_path / "fm", tmp_path / "data", row=0)
    slots = {pair.fields: pair.effect for pair in explanation.slots}
    ad = next(pair for pair in explanation.pairs if pair.fields == ("a", "b"))
    assert ad.effect == pytest.approx(slots.get(("a", "b[0]"), 0.0) + slots.get(("a", "b[1]"), 0.0), abs=1e-6)
    ids = {"kind": "categorical", "encoding": {"kind": "ids", "size": 48}, "separator": "|", "max_values": 4}
    single = prepared.schema(fields=[{"name": "a", **ids}])
    prepared.write(tmp_path / "single-data", {"test": ROWS}, single)
    write_run(tmp_path / "single", single)
    explanation = explain(tmp_path / "single", tmp_path / "single-data")
    assert {pair.fields for pair in explanation.pairs} >= {("a[0]", "a[1]")} and not explanation.slots


def test_a_row_with_one_pair_loses_all_of_it(tmp_path, afm):
    ids = prepared.rows_of("test", ROWS)["feature_ids"].copy()
    ids[0, 2:] = 0
    data = prepared.write(tmp_path, feature_ids=ids, splits={"test": ROWS})
    (pair,) = explain(afm[0], data, row=0).pairs
    assert (pair.fields, pair.attention) == (("a", "b"), pytest.approx(1.0))
    assert pair.weighted_attention == pytest.approx(1.0)
    assert pair.effect == pytest.approx(pair.contribution) and abs(pair.effect) > 1e-3
    assert pair.effect_share == pytest.approx(1.0)


def test_one_row(data, afm):
    folder, model = afm
    rows = {
        name: values[7:8] for name, values in prepared.rows_of("test", ROWS).items() if name.startswith("feature")
    }
    explanation = explain(folder, data, row=7)
    facts = explanation.row
    whole = logits_without(model, rows)
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
        assert pair.attention is None and pair.attention_rank is None and pair.weighted_attention is None
    assert explanation.rank_correlation is None


def test_files_table_and_json(tmp_path, data, afm):
    from rich.console import Console

    for row in (None, 3):
        explanation = explain(afm[0], data, row=row, output=tmp_path, requests=2 if row is None else 0)
        names = ["row-3.csv", "row-3-bars.png", "row-3-map.png", "row-3.html"]
        if row is None:
            names = ["pairs.csv", "pairs-requests.csv", "pairs-bars.png", "pairs-map.png", "pairs.html"]
        assert explanation.files == tuple(str(tmp_path / name) for name in names)
        with open(explanation.files[0], encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
        assert [(line["first"], line["second"]) for line in lines] == [pair.fields for pair in explanation.pairs]
        for name in ("effect_share", "weighted_attention"):
            assert [float(line[name]) for line in lines] == [getattr(pair, name) for pair in explanation.pairs]
        for picture in explanation.files[-3:-1]:
            with open(picture, "rb") as file:
                assert file.read(8) == b"\x89PNG\r\n\x1a\n"
        told = json.loads(json.dumps(explanation.to_json(2), allow_nan=False))
        assert len(told["pairs"]) == 2 and told["pairs_in_all"] == len(explanation.pairs)
        assert told["pairs"][0]["fields"] == list(explanation.pairs[0].fields)
        console = Console(record=True, width=120, file=open("/dev/null", "w"))  # noqa: SIM115
        console.print(table(explanation, 3))
        text = console.export_text()
        assert explanation.pairs[0].name in text and "rank correlation" in text
        page = (tmp_path / names[-1]).read_text(encoding="utf-8")
        assert page.count("<img") == 2 and 'src="http' not in page and 'href="http' not in page
        assert share(explanation.pairs[0].weighted_attention) in page
        assert f"rank correlation of attention and effect is {explanation.rank_correlation:+.2f}" in page
        rows = [explanation.row] if row else [request.row for request in explanation.requests]
        assert rows and all(facts.key in page and facts.key in text for facts in rows)
    with open(tmp_path / "pairs-requests.csv", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert {line["key"] for line in lines} == {"test-0", "test-1"} and float(lines[0]["effect"])


def test_requests_are_single_rows(data, afm, explanation, monkeypatch):
    whole = explanation
    monkeypatch.setattr(effects, "_MOST_ROWS", 8)
    explanation = explain(afm[0], data, requests=10)
    for few, many in zip(explanation.pairs, whole.pairs, strict=True):
        assert few.fields == many.fields and few.effect == pytest.approx(many.effect, rel=1e-5)
    assert [request.row.number for request in explanation.requests] == list(range(10))
    request, alone = explanation.requests[9], explain(afm[0], data, row=9)
    assert (request.row, request.pairs, request.agreement) == (alone.row, alone.pairs, alone.agreement)


def test_rankings_are_compared_over_pairs_that_are_there(data, afm):
    present = prepared.rows_of("test", ROWS)["feature_ids"] > 0
    row = int(np.flatnonzero(present.sum(axis=1) == 3)[0])
    explanation = explain(afm[0], data, row=row)
    sizes, attention = ([abs(getattr(p, name)) for p in explanation.pairs] for name in ("effect", "attention"))
    assert explanation.agreement.pairs == len(sizes) == 3
    assert explanation.rank_correlation == pytest.approx(spearmanr(sizes, attention).statistic)


TELLS = [  # attention, contributions, ablations: what the effects are made of, and what is said to be missing
    ((0, 1, 1), "removal", ["no attention"]),
    ((1, 0, 1), "removal", ["do not add up"]),
    ((0, 0, 1), "removal", ["do not add up", "no attention"]),
    ((1, 1, 0), "contribution", ["its effects are what the pairs add"]),
    ((0, 1, 0), "contribution", ["its effects are what the pairs add", "no attention"]),
    ((1, 0, 0), None, ["no measure of effect"]),
]


def test_pairs_that_do_nothing_are_said_to(explanation):
    assert explanation.missing() == []
    little = [replace(pair, effect=-0.0009 / pair.rank) for pair in explanation.pairs]
    (sentence,) = replace(explanation, pairs=tuple(little)).missing()
    assert "hardly move the logit here: the largest effect is 0.0009." in sentence


def test_no_weight_is_trusted_where_pairs_do_nothing(explanation):
    verdict = explanation.agreement.verdict()
    idle = replace(explanation, pairs=tuple(replace(pair, effect=-0.0009) for pair in explanation.pairs))
    for shown, trusted in ((explanation, True), (idle, False)):
        page = Page("pairs")
        page.section("All")
        add_trust(page, shown)
        assert (verdict in str(table(shown).renderables)) is (html.escape(verdict) in page.html()) is trusted


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.0, "100%"),
        (0.2345, "23%"),
        (0.0991, "9.9%"),
        (0.001349, "0.13%"),
        (0.00001, "0.0010%"),
        (1e-9, "0.0000%"),
        (0.0, "0%"),
    ],
)
def test_shares_have_two_digits(value, text):
    assert share(value) == text


@pytest.mark.parametrize(("tells", "effect_of", "missing"), TELLS)
def test_models_that_cannot_tell_everything(data, afm, explanation, monkeypatch, tells, effect_of, missing):
    whole = {pair.fields: pair for pair in explanation.pairs}
    for name, told in zip(("explain", "contributions", "ablations"), tells, strict=True):
        if not told:
            monkeypatch.setattr(AFM, name, lambda self, inputs: None)
    explanation = explain(afm[0], data, requests=1 if tells == (1, 0, 1) else 0)
    assert explanation.effect_of == effect_of and {pair.fields for pair in explanation.pairs} == set(whole)
    sentences = explanation.missing()
    assert len(sentences) == len(missing)
    assert all(words in sentence for words, sentence in zip(missing, sentences, strict=True))
    for pair in explanation.pairs:
        assert (pair.attention is not None, pair.contribution is not None) == tuple(map(bool, tells[:2]))
        assert (pair.weighted_attention is None) == (pair.attention is None)
        assert (pair.effect is None) == (pair.effect_share is None) == (effect_of is None)
        if effect_of == "removal":
            assert (pair.effect, pair.effect_share) == (whole[pair.fields].effect, whole[pair.fields].effect_share)
    leading = "attention" if effect_of is None else "effect"
    values = [getattr(pair, leading) for pair in explanation.pairs]
    assert values == sorted(values, reverse=True)
    if effect_of is not None:
        assert sum(pair.effect_share for pair in explanation.pairs) == pytest.approx(1.0)
    assert (explanation.agreement is None) == (effect_of is None or not tells[0])
    if tells == (0, 0, 1):
        page = page_of(explanation, prepared.schema()).html()
        assert all(words in page for words in missing) and page.count("<img") == 2
    json.dumps(explanation.to_json(3), allow_nan=False)


def test_at_most_so_many_rows(data, afm):
    explanation = explain(afm[0], data, "train", max_rows=3, requests=50)
    assert (explanation.rows, len(explanation.requests)) == (3, 3)


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
    with pytest.raises(UserError, match="101 single rows"):
        explain(afm[0], data, requests=101)
    with pytest.raises(UserError, match="give one of them"):
        model_commands.explain(afm[0], data, row=1, rows=2)


def test_rank_correlation_is_spearmans():
    rng = np.random.default_rng(0)
    first = rng.integers(0, 5, 40).astype(float)
    second = first + rng.normal(0, 2, 40)
    assert rank_correlation(first, second) == pytest.approx(spearmanr(first, second).statistic)
    assert rank_correlation(np.arange(4.0), np.array([1.0, 10.0, 100.0, 1000.0])) == pytest.approx(1.0)
    assert rank_correlation(np.ones(4), np.arange(4.0)) is None
    assert rank_correlation(np.ones(1), np.ones(1)) is None


def test_figures_of_agreement():
    effect = np.arange(12.0, 0.0, -1.0)
    attention = effect.copy()
    attention[[0, 11]] = attention[[11, 0]]
    found = agreement_of(effect, attention)
    assert (found.pairs, found.top, found.common, found.by_chance) == (12, 4, 3, pytest.approx(16 / 12))
    assert found.correlation == pytest.approx(spearmanr(effect, attention).statistic)
    assert found.evenness == pytest.approx(12 / 6.5)
    # atanh(0.5) ± 1.96 sqrt(1.125 / 97), by hand.
    assert interval(0.5, 100) == pytest.approx((0.32590, 0.64130), abs=1e-4)
    assert interval(0.9, 3) == (None, None) and interval(1.0, 9) == (1.0, 1.0)
    assert agreement_of(effect[:1], attention[:1]) is None
    even = agreement_of(effect, np.ones(12))
    assert even.correlation is None and "not defined" in even.figures() and "go by the effect" in even.verdict()
    assert "weighted" not in found.figures()
    assert (
        agreement_of(effect, attention, effect**2).figures().endswith("weighted attention the correlation is +1.00.")
    )


@pytest.mark.parametrize(
    ("correlation", "common", "words"),
    [
        (0.9, 8, "first guide"),
        (0.9, 2, "misses the strongest"),
        (0.1, 8, "as a hint"),
        (0.5, 5, "in part"),
        (-0.4, 1, "no measure of importance"),
    ],
)
def test_verdicts(correlation, common, words):
    agreement = Agreement(correlation, *interval(correlation, 741), pairs=741, top=10, common=common, evenness=1.5)
    assert words in agreement.verdict() and f"{correlation:+.2f}" in agreement.figures()


def test_memory_of_a_batch_does_not_grow_with_pairs():
    assert effects.batch_rows(6, 16) == 512
    for pairs, width in ((741, 16), (741, 256), (20_000, 64)):
        assert effects.batch_rows(pairs, width) * pairs * width * 4 <= 64 << 20
    assert effects.batch_rows(10_000_000, 64) == 1


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


@pytest.mark.parametrize("row", [None, 0])
def test_the_last_column_is_there_at_eighty_columns(data, afm, explanation, row):
    """Whatever the length of the names: with some, the heading of the last one was cut and its figures were gone."""
    from rich.console import Console

    explanation = replace(explanation, requests=()) if row is None else explain(afm[0], data, row=row)
    for length in (1, 8, 12, 40):
        named = tuple(replace(pair, fields=("x" * length, "y" * length)) for pair in explanation.pairs)
        console = Console(record=True, width=80, file=open("/dev/null", "w"))  # noqa: SIM115
        console.print(table(replace(explanation, pairs=named), 3))
        lines = console.export_text().splitlines()
        rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]
        ranks = [cells[-1] for cells in rows if cells[0].isdigit() and len(cells) > 3]
        assert ranks == [f"{pair.attention_rank:.0f}" for pair in named[:3]]
        assert max(map(len, lines)) <= 80


def test_figures_stay_beside_their_pairs_at_eighty_columns(explanation):
    from rich.console import Console

    long = tuple(
        replace(pair, fields=(f"a_long_name_of_a_field_{pair.rank}", f"another_long_name_of_a_field_{pair.rank}"))
        for pair in explanation.pairs
    )
    requests = tuple(
        replace(one, pairs=long, row=replace(one.row, key="a-key-that-is-longer-than-its-column-" * 2))
        for one in explanation.requests
    )
    console = Console(record=True, width=80, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table(replace(explanation, pairs=long, requests=requests), 3))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    cells = [[cell.strip() for cell in line.split("│")] for line in lines if "│" in line]
    for pair, row in zip(long[:3], [row for row in cells if row[1].isdigit()], strict=False):
        assert row[2] and pair.name.startswith(row[2]) and row[3] == f"{pair.effect:.4f}"
    shown = [row for row in cells if row[-2].endswith("%") and row[-3][:1] in "+-"]
    expected = [pair for request in requests for pair in request.pairs[:3]]
    assert len(shown) == len(expected) == 6
    for pair, row in zip(expected, shown, strict=True):
        assert pair.name.startswith(row[5]) and row[6] == f"{pair.effect:+.4f}" and row[7] == share(pair.attention)
