"""Files to chunks: every data line in exactly one chunk, known by its numbers, whatever the chunk sizes."""

from __future__ import annotations

import bz2
import gzip
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from afm_ctr.errors import UserError
from afm_ctr.schema import FeatureSchema, ParquetFormat
from beam_jobs.sources import Chunk, count, discover, divide, pieces_to_count, read_chunks, read_piece, units

FIELD = {"name": "site", "kind": "categorical", "encoding": {"kind": "hash", "buckets": 9}}


PARQUET = ParquetFormat(kind="parquet")


def schema(header: bool) -> FeatureSchema:
    layout = {"kind": "delimited", "header": header, "columns": ["click", "site"]}
    return FeatureSchema.model_validate(
        {"name": "t", "format": layout, "label": {"column": "click"}, "fields": [FIELD]}
    )


def chunks_of(
    paths: list[Path], header: bool, chunk_bytes: int = 1 << 20, chunk_lines: int = 1000, **changes: Any
) -> list[Chunk]:
    spec = schema(header).model_copy(update=changes)
    logs = discover([(str(path), path.stat().st_size) for path in paths], spec)
    pieces = pieces_to_count(logs, chunk_bytes)
    return divide(pieces, [count(piece) for piece in pieces], chunk_lines, chunk_bytes)


def lines_of(unit: list[Chunk]) -> list[tuple[int, int, bytes]]:
    """(global row, line number, line) of every line of a unit."""
    found = []
    for _, same in groupby(unit, key=lambda chunk: chunk.file.path):
        for chunk, batches in read_chunks(list(same), 3, ["site"]):
            for batch in batches:
                lines = [*batch.lines] + ([batch.broken.raw] if batch.broken else [])
                for i, line in enumerate(lines, batch.first_line):
                    found.append((chunk.first_row + i - chunk.first_line, i, line))
    return found


@pytest.mark.parametrize("header", [False, True])
@pytest.mark.parametrize("size", [1, 7, 40, 10**6])
def test_every_line_of_every_file_is_in_one_chunk(tmp_path: Path, header: bool, size: int) -> None:
    top = [b"click,site"] if header else []
    first = [b"%d,%s" % (i % 2, b"x" * i) for i in range(20)] + [b""]
    second = [b"0,y%d" % i for i in range(13)]
    # Named so that their order is not the order in which they are written; the last line of b has no end.
    (tmp_path / "b.csv").write_bytes(b"\n".join(top + second))
    (tmp_path / "a.csv").write_bytes(b"\r\n".join([*top, *first, b""]))
    for name, pack in (("c.csv.gz", gzip.compress), ("d.bz2", bz2.compress), ("e.zst", zstandard.compress)):
        (tmp_path / name).write_bytes(pack(b"\n".join([*top, *second, b""])))
    chunks = chunks_of(sorted(tmp_path.iterdir()), header, chunk_bytes=size, chunk_lines=min(size, 5))
    assert [chunk.number for chunk in chunks] == list(range(len(chunks)))
    start = 2 if header else 1
    expected = [line for part in (first, *[second] * 4) for line in enumerate(part, start)]
    for workers in (1, 3):
        found = [line for unit in units(chunks, workers) for line in lines_of(unit)]
        assert [(number, line) for _, number, line in found] == expected
        assert [row for row, _, _ in found] == list(range(len(expected)))


def test_spans_of_a_gzip_file_hold_whole_chunks(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"".join(b"1,%d\n" % i for i in range(95))))
    chunks = chunks_of([path], False, chunk_lines=10)
    assert [chunk.rows for chunk in chunks] == [10] * 9 + [5]
    assert [len(unit) for unit in units(chunks, 1)] == [10]
    assert [len(unit) for unit in units(chunks, 2)] == [2, 3, 2, 3]
    assert [len(unit) for unit in units(chunks, None)] == [1, 1, 1, 2, 1, 1, 1, 2]
    assert lines_of(units(chunks, 2)[2])[0] == (50, 51, b"1,50")


@pytest.mark.parametrize(("chunk_lines", "groups"), [(7, 10), (10, 10), (25, 10), (1000, 10), (4, 100), (10, 3)])
def test_rows_of_a_parquet_file_are_cut_by_number_and_entered_by_row_group(
    tmp_path: Path, chunk_lines: int, groups: int
) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"site": range(95), "click": [1] * 95}), path, row_group_size=groups)
    pq.write_table(pa.table({"site": range(5), "click": [1] * 5}), tmp_path / "b.parquet")
    chunks = chunks_of([path, tmp_path / "b.parquet"], False, 1, chunk_lines, format=PARQUET)
    whole = -(-95 // chunk_lines)
    assert [chunk.rows for chunk in chunks[: whole - 1]] == [min(chunk_lines, 95)] * (whole - 1)
    assert sum(chunk.rows for chunk in chunks) == 100
    expected = [(i, i % 95 + 1, b'{"site": %d}' % (i % 95)) for i in range(100)]
    for workers in (1, 3):
        assert [line for unit in units(chunks, workers) for line in lines_of(unit)] == expected
    # One worker takes a file's chunks by the row groups that they begin in.
    assert all(len({(c.file.path, c.group) for c in unit}) == 1 for unit in units(chunks, 1))
    assert len(units(chunks, 1)) == len({(chunk.file.path, chunk.group) for chunk in chunks})
    pq.write_table(pa.table({"site": range(80), "click": [1] * 80}), path, row_group_size=groups)
    with pytest.raises(UserError, match=r"a.parquet changed while it was read"):
        [line for unit in units(chunks, 1) for line in lines_of(unit)]


@pytest.mark.parametrize("lines", [3, 4])
def test_the_broken_end_of_a_gzip_file_is_one_row(tmp_path: Path, lines: int) -> None:
    path = tmp_path / "a.gz"
    data = b"".join(b"1,%d\n" % i for i in range(lines))
    path.write_bytes(gzip.compress(data)[:-4])  # the length at the end is missing
    chunks = chunks_of([path], False, chunk_lines=2)
    assert [(chunk.rows, chunk.broken) for chunk in chunks] == {
        3: [(2, False), (2, True)],
        4: [(2, False), (2, False), (1, True)],
    }[lines]
    assert [line for _, _, line in lines_of(chunks)] == [*data.split(b"\n")[:-1], b""]


def test_a_file_that_changes_between_the_passes_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"1,a\n" * 4)
    chunks = chunks_of([path], False)
    path.write_bytes(b"1,a\n" * 2)
    with pytest.raises(UserError, match=r"a.csv changed while it was read"):
        lines_of(chunks)


def test_what_a_file_is_shows_in_its_first_bytes(tmp_path: Path) -> None:
    packed = tmp_path / "a.log"
    packed.write_bytes(gzip.compress(b"click,site\n1,a\n"))
    (tmp_path / "empty.log").write_bytes(b"")
    (log,) = discover([(str(path), path.stat().st_size) for path in tmp_path.iterdir()], schema(True))
    assert (log.kind, log.header, log.first_line) == ("gzip", b"click,site", b"1,a")
    packed.rename(tmp_path / "b.gz").write_bytes(b"click,site\n")
    with pytest.raises(UserError, match="the name says gzip, the content does not"):
        discover([(str(tmp_path / "b.gz"), 11)], schema(True))
    (tmp_path / "b.csv").write_bytes(b"x" * 70 + b"\n1,a\n")
    short = schema(True).format.model_copy(update={"max_line_bytes": 64})
    with pytest.raises(
        UserError, match=r"b.csv: the header line has 70 bytes, more than format.max_line_bytes allows"
    ):
        chunks_of([tmp_path / "b.csv"], True, format=short)
    packed = gzip.compress(b"")
    (tmp_path / "b.gz").write_bytes(packed)
    assert discover([(str(tmp_path / "b.gz"), len(packed))], schema(True)) == []
    (tmp_path / "b.gz").write_bytes(packed[:-9])
    with pytest.raises(UserError, match=r"b.gz: no header line: the gzip stream ends early"):
        discover([(str(tmp_path / "b.gz"), len(packed) - 9)], schema(True))


def test_small_files_share_a_chunk_as_far_as_its_sizes_allow(tmp_path: Path) -> None:
    sizes = {"a": 3, "b": 2, "c": 40, "d": 1, "e": 0, "f": 4, "g": 5, "h": 6}
    for name, rows in sizes.items():
        (tmp_path / f"{name}.csv").write_bytes(b"".join(b"1,%d\n" % (i % 10) for i in range(rows)))
    (tmp_path / "b.csv").write_bytes(gzip.compress((tmp_path / "b.csv").read_bytes(), mtime=0))
    paths = sorted(tmp_path.iterdir())
    chunks = chunks_of(paths, False, chunk_bytes=60, chunk_lines=10)
    numbers: dict[str, set[int]] = {}
    for chunk in chunks:
        numbers.setdefault(Path(chunk.file.path).stem, set()).add(chunk.number)
    # c has several chunks of its own; e is empty; f, g and h have 15 rows together.
    assert numbers == {"a": {0}, "b": {0}, "c": {1, 2, 3}, "d": {4}, "f": {4}, "g": {4}, "h": {5}}
    for workers in (1, 3, None):
        taken = units(chunks, workers)
        assert [line for unit in taken for line in lines_of(unit)] == [
            line for unit in [chunks] for line in lines_of(unit)
        ]
        together = [{chunk.number for chunk in unit} for unit in taken]
        assert {0} in together and {4} in together and {5} in together
    assert {chunk.number for chunk in chunks_of(paths, False, chunk_bytes=20, chunk_lines=10)} != numbers
    assert [row for row, _, _ in lines_of(chunks)] == list(range(61))


def test_a_piece_is_read_without_having_been_counted(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"click,site\n" + b"".join(b"1,%d\n" % i for i in range(30)))
    (tmp_path / "b.gz").write_bytes(gzip.compress((tmp_path / "a.csv").read_bytes())[:-4])
    pq.write_table(pa.table({"site": range(30), "click": [1] * 30}), tmp_path / "c.parquet", row_group_size=7)
    for name, changes, pieces in (("a.csv", {}, 6), ("b.gz", {}, 1), ("c.parquet", {"format": PARQUET}, 1)):
        path = tmp_path / name
        found = pieces_to_count(
            discover([(str(path), path.stat().st_size)], schema(True).model_copy(update=changes)), 30
        )
        batches = [list(read_piece(piece, 4, ["site"])) for piece in found]
        lines = [bytes(line) for piece in batches for batch in piece for line in batch.lines]
        assert len(found) == pieces and len(lines) == 30 and len(set(lines)) == 30
        assert all(piece[0].first_line == 1 for piece in batches if piece)
        assert [batch.broken is not None for piece in batches for batch in piece][-1] == (name == "b.gz")


def test_a_worker_may_have_another_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "a.csv").write_bytes(b"1,x\n0,y\n")
    monkeypatch.chdir(tmp_path / "logs")
    (chunk,) = chunks_of([Path("a.csv")], False)
    monkeypatch.chdir("/")
    assert [line for _, _, line in lines_of([chunk])] == [b"1,x", b"0,y"]
    assert chunk.file.source == "a.csv"  # as the user wrote it, for keys and rejects
