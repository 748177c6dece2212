"""A log with every kind of damage, many times: nothing is lost, every reason's count is exact, good rows are there.

What must come out is counted while the log is written, by other means than those that read it.
"""

from __future__ import annotations

import bz2
import gzip
import json
import random
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from afm_ctr.rawlog import parse_log
from afm_ctr.records import Manifest, parse_examples
from afm_ctr.schema import FeatureSchema, ResolvedSchema
from beam_jobs import PrepareOptions, PrepareSummary, prepare

LINES = 10_000
COLUMNS = ["id", "click", "price", "slot", "site", "w"]
FIELDS: list[dict[str, Any]] = [
    {"name": "price", "kind": "numeric", "encoding": {"kind": "value"}},
    {"name": "slot", "kind": "categorical", "encoding": {"kind": "ids", "size": 20}},
    {"name": "site", "kind": "categorical", "encoding": {"kind": "hash", "buckets": 100}},
]


@dataclass
class Line:
    """A line as it is written: its bytes without their end, why it is bad, and its row when it is not."""

    text: bytes
    end: bytes
    reason: str | None = None
    row: tuple[bytes, float, float, int] | None = None  # key, label, price, slot


def schema(kind: str) -> FeatureSchema:
    layout: dict[str, Any] = {"kind": kind, "columns": COLUMNS}
    if kind == "delimited":
        layout["header"] = False
    label = {"column": "click"}
    content = {"name": "t", "format": layout, "label": label, "key": "id", "weight": "w", "fields": FIELDS}
    return FeatureSchema.model_validate(content)


def csv_text(cells: list[Any]) -> bytes:
    return b",".join(str(cell).encode() for cell in cells)


def json_text(cells: list[Any]) -> bytes:
    return json.dumps(dict(zip(COLUMNS, cells, strict=True))).encode()


CSV_DAMAGE: dict[str, list[bytes]] = {
    "column_count": [b"1,1,2,3", b"a,1,2,3,s,1,more", b"no delimiter"],
    "bad_quoting": [b'a,1,2,3,"open,1', b'a,1,2,3,"shut"open,1'],
}
JSON_DAMAGE: dict[str, list[bytes]] = {
    "bad_json": [
        b'{"id": "a", "click": 1',
        b"[1, 2]",
        b'{"id": 1} {"id": 2}',
        b"null",
        b'{"id": "a", "click": 1, "site": {"name": "s"}}',
        b"{'id': 'a'}",
        b"[" * 3000,
    ]
}


def make_lines(kind: str) -> list[Line]:
    """10,000 lines; about one in four is damaged."""
    draw = random.Random(kind)
    write: Callable[[list[Any]], bytes] = csv_text if kind == "delimited" else json_text
    damage = CSV_DAMAGE if kind == "delimited" else JSON_DAMAGE
    lines = []
    for i in range(LINES):
        key, click, price, slot = f"r{i}", draw.randrange(2), draw.randrange(-900, 900) / 8, draw.randrange(20)
        site = draw.choice(["s", "é", "a\0b", "", " x "])
        if kind == "delimited" and draw.random() < 0.1:
            site = '"quoted, ""so"""'
        cells = [key, click, price, slot, site, 2]
        line = Line(write(cells), draw.choice([b"\n", b"\r\n"]))
        roll = draw.randrange(40)
        if i in (1234, 6789):
            line.text, line.reason = b"x" * 5_000_000, "line_too_long"
        elif i % 1500 == 700:
            line.text, line.reason = write([*cells[:4], "y" * (1 << 20), 2]), "line_too_long"
        elif roll == 0:
            line.text, line.reason = b"", "empty_line"
        elif roll == 1:
            line.text, line.reason = line.text.replace(b"r", b"\xff\xfe", 1), "bad_utf8"
        elif roll == 2:
            line.text, line.reason = write([key, draw.choice(["", 2, "yes"]), price, slot, site, 2]), "bad_label"
        elif roll == 3:
            line.text, line.reason = (
                write([key, click, draw.choice(["x", "nan", "1e999"]), slot, site, 2]),
                "bad_number",
            )
        elif roll == 4:
            line.text, line.reason = write([key, click, price, draw.choice([20, -1, "a"]), site, 2]), "bad_id"
        elif roll == 5:
            line.text, line.reason = write([key, click, price, slot, site, draw.choice([-1, "", "x"])]), "bad_weight"
        elif roll < 10:
            line.reason = draw.choice(list(damage))
            line.text = draw.choice(damage[line.reason])
        else:
            line.row = (key.encode(), float(click), price, slot)
        lines.append(line)
    # The last line is a good one and has no end.
    lines[-1] = Line(write(["last", 1, 0.5, 3, "s", 1]), b"", row=(b"last", 1.0, 0.5, 3))
    return lines


def content(lines: list[Line]) -> bytes:
    return b"".join(line.text + line.end for line in lines)


def cut_short(lines: list[Line], text: bytes) -> list[Line]:
    """Of lines those that are whole in a beginning of their content, and what is left of the next as a reject."""
    whole = text.count(b"\n")
    return [*lines[:whole], Line(text[text.rfind(b"\n") + 1 :], b"", "truncated_input")]


def records(out: Path) -> dict[bytes, dict[str, Any]]:
    import tensorflow as tf

    manifest, resolved = Manifest.load(out), ResolvedSchema.load(out)
    found: dict[bytes, dict[str, Any]] = {}
    for shard in manifest.shards:
        rows = list(tf.data.TFRecordDataset(manifest.path_of(out, shard)).as_numpy_iterator())
        parsed = parse_examples(rows, resolved.num_slots)
        for i, key in enumerate(parsed["key"]):
            assert key not in found
            found[key] = {name: value[i] for name, value in parsed.items()}
    return found


def rejects(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted((out / "rejects").iterdir()) for line in path.open()]


def check(out: Path, summary: PrepareSummary, lines: list[Line]) -> None:
    """The data set is exactly what was written down while writing the log."""
    expected = Counter(line.reason for line in lines if line.reason)
    assert summary.rejects == dict(sorted(expected.items()))
    assert summary.rows_in == len(lines) == summary.rows_out + sum(expected.values())
    found = records(out)
    good = {line.row[0]: line.row for line in lines if line.row}
    assert found.keys() == good.keys() and len(good) == summary.rows_out
    for key, (_, label, price, _) in good.items():
        assert (found[key]["label"], found[key]["feature_vals"][0]) == (label, price)
    # Declared ids keep their order: one distance from slot to id.
    assert len({int(found[key]["feature_ids"][1]) - slot for key, (_, _, _, slot) in good.items()}) == 1
    kept = rejects(out)
    assert [(reject["line"], reject["reason"]) for reject in kept] == [
        (number, line.reason) for number, line in enumerate(lines, 1) if line.reason
    ]
    for reject in kept:
        line = lines[reject["line"] - 1]
        if line.reason == "line_too_long":
            assert reject["detail"] == f"{len(line.text)} bytes"
        if "raw" in reject:
            assert reject["raw"].encode() == (line.text[:1024] if len(line.text) > 1 << 20 else line.text)
        else:
            assert reject["raw_base64"]


@pytest.mark.parametrize("kind", ["delimited", "jsonl"])
def test_nothing_is_lost_of_a_log_with_every_kind_of_damage(tmp_path: Path, kind: str) -> None:
    lines = make_lines(kind)
    path = tmp_path / "torture.log"
    path.write_bytes(content(lines))
    out = tmp_path / "out"
    options = PrepareOptions(
        schema(kind), [str(path)], str(out), max_reject_share=1, chunk_bytes=1_000_000, split="hash:key:80/10/10"
    )
    check(out, prepare(options), lines)
    # Reading without a job tells the same lines apart, but for cells that only the transform judges.
    found = list(parse_log(str(path), schema(kind), batch_rows=777))
    reasons = Counter(reject.reason for rows in found for reject in rows.rejects)
    assert reasons == Counter(r for line in lines if (r := line.reason) and r not in ("bad_number", "bad_id"))
    assert sum(map(len, found)) + reasons.total() == LINES


def gunzipped(packed: bytes) -> bytes:
    return zlib.decompressobj(31).decompress(packed)


def bzipped(data: bytes) -> bytes:
    return bz2.compress(data, 1)  # small blocks: only whole ones can be read


def bunzipped(packed: bytes) -> bytes:
    return bz2.BZ2Decompressor().decompress(packed)


def unzstd(packed: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompressobj().decompress(packed)


@pytest.mark.parametrize(
    ("kind", "pack", "readable"),
    [
        ("delimited", gzip.compress, gunzipped),
        ("delimited", bzipped, bunzipped),
        ("jsonl", zstandard.compress, unzstd),
    ],
)
def test_a_packed_log_cut_short_keeps_all_that_is_whole(
    tmp_path: Path, kind: str, pack: Callable[[bytes], bytes], readable: Callable[[bytes], bytes]
) -> None:
    lines = make_lines(kind)
    packed = pack(content(lines))
    packed = packed[: len(packed) * 3 // 4]
    expected = cut_short(lines, readable(packed))
    assert LINES // 3 < len(expected) < LINES
    (tmp_path / "torture.log").write_bytes(packed)
    digests = []
    for name, workers in (
        ("one", []),
        ("three", ["--direct_num_workers=3", "--direct_running_mode=multi_threading"]),
    ):
        out = tmp_path / name
        options = PrepareOptions(
            schema(kind),
            [str(tmp_path / "torture.log")],
            str(out),
            max_reject_share=1,
            chunk_lines=600,
            beam_args=workers,
        )
        check(out, prepare(options), expected)
        digests.append([shard.sha256 for shard in Manifest.load(out).shards])
    assert digests[0] == digests[1] and len(digests[0]) > 5
    assert np.isfinite([record["weight"] for record in records(tmp_path / "one").values()]).all()
