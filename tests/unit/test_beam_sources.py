"""Files to chunks: every data line in exactly one chunk, known by its numbers, whatever the chunk sizes."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from afm_ctr.errors import UserError
from afm_ctr.schema import FeatureSchema
from beam_jobs.sources import Chunk, count, discover, divide, pieces_to_count, read_unit, units

FIELD = {"name": "site", "kind": "categorical", "encoding": {"kind": "hash", "buckets": 9}}


def schema(header: bool) -> FeatureSchema:
    layout = {"kind": "delimited", "header": header, "columns": ["click", "site"]}
    return FeatureSchema.model_validate(
        {"name": "t", "format": layout, "label": {"column": "click"}, "fields": [FIELD]}
    )


def chunks_of(paths: list[Path], header: bool, chunk_bytes: int = 1 << 20, chunk_lines: int = 1000) -> list[Chunk]:
    logs = discover([(str(path), path.stat().st_size) for path in paths], schema(header))
    pieces = pieces_to_count(logs, chunk_bytes)
    return divide(pieces, [count(piece) for piece in pieces], chunk_lines)


def lines_of(unit: list[Chunk]) -> list[tuple[int, int, bytes]]:
    """(global row, line number, line) of every line of a unit."""
    found = []
    for chunk, batches in read_unit(unit, 3):
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
    (tmp_path / "c.csv.gz").write_bytes(gzip.compress(b"\n".join([*top, *second, b""])))
    chunks = chunks_of(sorted(tmp_path.iterdir()), header, chunk_bytes=size, chunk_lines=min(size, 5))
    assert [chunk.number for chunk in chunks] == list(range(len(chunks)))
    start = 2 if header else 1
    expected = [line for part in (first, second, second) for line in enumerate(part, start)]
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
    assert lines_of(units(chunks, 2)[2])[0] == (50, 51, b"1,50")


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
    packed = gzip.compress(b"")
    (tmp_path / "b.gz").write_bytes(packed)
    assert discover([(str(tmp_path / "b.gz"), len(packed))], schema(True)) == []
    (tmp_path / "b.gz").write_bytes(packed[:-9])
    with pytest.raises(UserError, match=r"b.gz: no header line: the gzip stream ends early"):
        discover([(str(tmp_path / "b.gz"), len(packed) - 9)], schema(True))
