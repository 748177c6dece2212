"""What a job leaves out: negatives by a hash of the key, and rejects, counted exactly and kept up to a cap."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from afm_ctr.errors import RunError, UserError
from afm_ctr.records import Manifest, parse_examples
from afm_ctr.schema import FeatureSchema, ResolvedSchema
from beam_jobs import PrepareOptions, PrepareSummary, prepare
from beam_jobs.output import Output
from beam_jobs.rows import fingerprint64

FIELDS: list[dict[str, Any]] = [
    {"name": "price", "kind": "numeric", "encoding": {"kind": "value", "standardise": True}},
    {"name": "site", "kind": "categorical", "encoding": {"kind": "vocabulary"}},
]
LAYOUT = {"kind": "delimited", "header": False, "columns": ["click", "price", "site", "id", "w"]}


def spec(**changes: Any) -> FeatureSchema:
    content = {"name": "t", "format": LAYOUT, "label": {"column": "click"}, "key": "id", "fields": FIELDS}
    return FeatureSchema.model_validate(content | changes)


def log(rows: int) -> list[bytes]:
    return [b"%d,%d,s%d,k%d,2" % (i % 5 == 0, i, i, i) for i in range(rows)]


def run(folder: Path, lines: list[bytes], **options: Any) -> PrepareSummary:
    (folder / "log.csv").write_bytes(b"\n".join(lines))
    options = {"schema": spec(), "inputs": [str(folder / "log.csv")], "output": str(folder / "out")} | options
    return prepare(PrepareOptions(**options))


def records(out: Path) -> dict[str, dict[bytes, dict[str, Any]]]:
    import tensorflow as tf

    manifest, resolved = Manifest.load(out), ResolvedSchema.load(out)
    found: dict[str, dict[bytes, dict[str, Any]]] = {}
    for shard in manifest.shards:
        rows = list(tf.data.TFRecordDataset(manifest.path_of(out, shard)).as_numpy_iterator())
        parsed = parse_examples(rows, resolved.num_slots)
        for i, key in enumerate(parsed["key"]):
            found.setdefault(shard.split, {})[key] = {name: value[i] for name, value in parsed.items()}
    return found


def kept(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted((out / "rejects").iterdir()) for line in path.open()]


def test_negatives_of_train_are_thinned_by_their_keys_and_weigh_more(tmp_path: Path) -> None:
    sampling = {"rate": 0.25, "correct": "weights", "apply": "here"}
    lines = log(400)
    thinned = spec(negative_sampling=sampling, weight="w")
    summary = run(tmp_path, [*lines[:200], b"bad", *lines[200:]], schema=thinned, split="tail:0.25", chunk_bytes=700)
    assert summary.rejects == {"column_count": 1} and summary.rows_in == 401
    assert summary.rows_out == 400 - summary.sampled_out
    rows = records(tmp_path / "out")
    assert rows["test"].keys() == {b"k%d" % i for i in range(300, 400)}
    assert {row["weight"] for row in rows["test"].values()} == {2.0}
    keys = [b"k%d" % i for i in range(300)]
    low = (fingerprint64(keys) % np.uint64(2**32)).tolist()
    stay = {key for i, key in enumerate(keys) if i % 5 == 0 or low[i] < 2**30}
    assert rows["train"].keys() == stay and 40 < len(stay) - 60 < 80
    assert all(row["weight"] == (2 if row["label"] else 8) for row in rows["train"].values())
    assert summary.sampled_out == 300 - len(stay) == Manifest.load(tmp_path / "out").sampled_out
    # What is learnt is learnt from the rows that are trained on.
    resolved = ResolvedSchema.load(tmp_path / "out")
    assert set(resolved.vocabularies["site"]) == {b"s" + key[1:] for key in stay}
    assert resolved.statistics["price"].mean == pytest.approx(np.mean([int(key[1:]) for key in stay]))
    # Other chunks, same rows.
    run(tmp_path, lines, schema=thinned, split="tail:0.25", output=str(tmp_path / "again"), chunk_bytes=99_999)
    assert records(tmp_path / "again")["train"].keys() == stay


def test_unlabelled_logs_and_a_rate_of_one_lose_nothing(tmp_path: Path) -> None:
    sampling = {"rate": 1.0, "correct": "logit", "apply": "here"}
    assert run(tmp_path, log(50), schema=spec(negative_sampling=sampling)).sampled_out == 0
    thin = spec(negative_sampling=sampling | {"rate": 0.01})
    assert run(tmp_path, log(50), schema=thin, labelled=False, overwrite=True).rows_out == 50
    summary = run(tmp_path, log(50), schema=thin, overwrite=True)
    assert summary.splits["train"]["positives"] == 10 and summary.sampled_out >= 35


def test_a_weight_that_the_correction_takes_beyond_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A key that a rate so low keeps that 1e30 overflows would take an hour to find: lower the limit instead.
    monkeypatch.setattr("beam_jobs.rows.LARGEST", 1e32)
    names = [b"x%d" % i for i in range(9000)]
    low = fingerprint64(names) % np.uint64(2**32)
    stays, goes = names[int(low.argmin())], names[int(low.argmax())]
    lines = [b"1,1,a,k,1e30", b"0,1,a,%s,1e30" % stays, b"0,1,a,%s,1e30" % goes]
    sampling = {"rate": 2.0**-10, "correct": "weights", "apply": "here"}
    summary = run(tmp_path, lines, schema=spec(negative_sampling=sampling, weight="w"), max_reject_share=1)
    assert (summary.rows_out, summary.sampled_out, summary.rejects) == (1, 1, {"bad_weight": 1})
    assert kept(tmp_path / "out")[0]["detail"] == "weight 1.02e+33, with 1/rate, is beyond float32"


def test_rejects_are_counted_exactly_and_kept_up_to_a_cap(tmp_path: Path) -> None:
    lines = log(300)
    for i in range(0, 300, 3):
        lines[i] = b"1,x%d,a,k,2" % i if i % 2 else b"short"
    counts = {"bad_number": 50, "column_count": 50}
    whole = run(tmp_path, lines, max_reject_share=1, chunk_bytes=600)
    assert whole.rejects == whole.rejects_kept == counts and whole.shards > 5
    everything = kept(tmp_path / "out")
    for most in (7, 1, 0):
        some = run(tmp_path, lines, max_reject_share=1, chunk_bytes=600, max_rejects_kept=most, overwrite=True)
        assert some.rejects == counts and some.rejects_kept == dict.fromkeys(counts, most)
        first = [r for reason in counts for r in [r for r in everything if r["reason"] == reason][:most]]
        if most:
            assert kept(tmp_path / "out") == sorted(first, key=lambda reject: reject["line"])
        assert Manifest.load(tmp_path / "out").rejects_kept == some.rejects_kept
    # One chunk may hold more than all that is kept.
    one = run(tmp_path, lines, max_reject_share=1, max_rejects_kept=7, overwrite=True)
    assert (one.rejects, one.rejects_kept) == (counts, dict.fromkeys(counts, 7))


def test_too_large_a_share_of_rejects_publishes_nothing_and_says_where_they_are(tmp_path: Path) -> None:
    lines = log(300)
    lines[10] = lines[20] = lines[30] = b"short"
    assert run(tmp_path, lines).rejects == {"column_count": 3}  # 1 % exactly
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    lines[40] = b"1,cheap,a,k,2"
    said = (
        r"^4 of 300 rows \(1.33%\) are rejected, more than --max-reject-share 0.01 allows: bad_number: 1, "
        r"column_count: 3; fix the schema or the logs, or allow more; the lines are in .*/out/rejects-failed.jsonl$"
    )
    with pytest.raises(UserError, match=said):
        run(tmp_path, lines, overwrite=True)
    left = tmp_path / "out" / "rejects-failed.jsonl"
    assert [json.loads(line)["line"] for line in left.open()] == [11, 21, 31, 41]
    # The data set that was to be replaced is still whole.
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before | {
        left: left.read_bytes()
    }
    assert run(tmp_path, lines, overwrite=True, max_reject_share=0.02).rows_out == 296
    assert not left.exists() and len(list((tmp_path / "out").glob("attempt-*"))) == 1
    with pytest.raises(UserError, match="--max-reject-share is a share"):
        run(tmp_path, lines, max_reject_share=2)


def test_no_manifest_names_shards_that_another_run_has_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = Output.publish

    def late(self: Output, manifest: Manifest, *rest: Any) -> None:
        next((tmp_path / "out").glob("attempt-*/train/*")).unlink()
        publish(self, manifest, *rest)

    monkeypatch.setattr(Output, "publish", late)
    with pytest.raises(
        RunError, match="is missing or has changed since it was written: another run has been at work"
    ):
        run(tmp_path, log(30))
    assert not (tmp_path / "out" / "manifest.json").exists()
