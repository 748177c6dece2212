"""Rejects as lines of a file, and which of them a data set keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from afm_ctr.rawlog import Reject
from beam_jobs.rejects import ChunkRejects, Share, reject_file, shares, taken


def reject(line: int, reason: str = "bad_id", raw: bytes = b"1,x") -> Reject:
    return Reject(b"k\xff", "log.csv", line, reason, "field user", raw)


@pytest.mark.parametrize(
    ("raw", "kept"),
    [("ключ".encode(), {"raw": "ключ"}), (b"a\xff", {"raw_base64": "Yf8="}), (b"", {"raw": ""})],
)
def test_a_reject_is_one_line_and_keeps_its_bytes(raw: bytes, kept: dict[str, str]) -> None:
    line = reject(7, raw=raw).to_line()
    expected: dict[str, Any] = {"key": "k\ufffd", "source": "log.csv", "line": 7, "reason": "bad_id"}
    assert json.loads(line) == {**expected, "detail": "field user", **kept}
    assert line.endswith(b"}\n") and line.count(b"\n") == 1
    assert "raw_base64" in kept or raw in line, "text can be searched for as it is"


def test_a_chunk_keeps_the_first_of_each_reason_and_counts_all() -> None:
    rejects = ChunkRejects(most=2)
    rejects.add([reject(5), reject(2), reject(3, "bad_label")])
    assert (rejects.room("bad_id"), rejects.room("bad_label"), rejects.room("bad_utf8")) == (0, 1, 2)
    rejects.add([reject(9), reject(8, "bad_label"), reject(7, "bad_label")])
    assert rejects.counts == {"bad_id": 3, "bad_label": 3}
    assert rejects.lines() == b"".join(
        one.to_line() for one in (reject(2), reject(3, "bad_label"), reject(5), reject(7, "bad_label"))
    )


def test_a_chunk_that_may_keep_none_counts_them() -> None:
    rejects = ChunkRejects(most=0)
    rejects.add([reject(1), reject(2)])
    assert rejects.lines() == b"" and rejects.counts == {"bad_id": 2}


def test_chunks_share_what_may_be_kept_of_a_reason_in_their_order() -> None:
    counts = [
        ("a", {"bad_id": 2, "bad_label": 1}),
        ("b", {"bad_id": 9}),
        ("c", {"bad_id": 1}),
        ("d", {"bad_label": 4}),
    ]
    found, kept = shares(counts, 3)
    assert found == [
        Share("a", {"bad_id": 2, "bad_label": 1}, whole=True),
        Share("b", {"bad_id": 1}, whole=False),  # its file holds three
        Share("d", {"bad_label": 2}, whole=False),
    ]
    assert kept == {"bad_id": 3, "bad_label": 3}
    assert list(kept) == sorted(kept)


def test_a_file_that_holds_no_more_than_its_cap_is_taken_whole() -> None:
    assert shares([("a", {"bad_id": 9})], 3) == ([Share("a", {"bad_id": 3}, whole=True)], {"bad_id": 3})
    assert shares([("a", {"bad_id": 9})], 0) == ([], {"bad_id": 0})


def test_a_share_takes_the_first_lines_of_each_reason(tmp_path: Path) -> None:
    lines = [reject(1), reject(2, "bad_label"), reject(3), reject(4), reject(5, "bad_label"), reject(6, "bad_utf8")]
    content = [one.to_line() for one in lines]
    name = reject_file(3)
    assert name == "part-00003.jsonl"
    (tmp_path / name).write_bytes(b"".join(content))
    assert taken(str(tmp_path), Share(name, {"bad_id": 2, "bad_label": 1}, whole=False)) == b"".join(content[:3])
    assert taken(str(tmp_path), Share(name, {"bad_id": 9}, whole=True)) == b"".join(content)
