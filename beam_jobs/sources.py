"""The input files of a job, and their division into chunks.

A chunk is the unit of work: a byte range of a plain text file (with the lines that start in it), a fixed number of
lines of a compressed file, in which readers cannot seek, or of rows of a Parquet file, in which readers can seek to
row groups. Files smaller than a chunk share one with their neighbours. Chunks are numbered through the files in the
order of their names, so number and content depend only on the input, not on the runner, its workers or its bundles.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate, groupby, pairwise
from typing import Literal, NamedTuple

from afm_ctr.errors import UserError
from afm_ctr.rawlog import BrokenEnd, LineParser, LineStream, LongLine, ParquetLog, has_header
from afm_ctr.rawlog.codecs import Codec, open_text, read_blocks, unpack
from afm_ctr.rawlog.layout import header_line
from afm_ctr.rawlog.lines import range_blocks, without_mark
from afm_ctr.rawlog.tables import TableStream
from afm_ctr.schema import MAX_LINE_BYTES, FeatureSchema
from afm_ctr.sidetables import SideTables
from beam_jobs import files
from beam_jobs.results import Counted

CHUNK_BYTES = 8 << 20
CHUNK_LINES = 32768
# Reading a span of a stream decompresses everything before it. A few spans keep several workers busy at linear cost:
# gzip, zstd and Parquet decompress about twenty times faster than rows are converted, bzip2 only twice.
MOST_SPANS: dict[str, int] = {"gzip": 8, "zstd": 8, "parquet": 8, "bz2": 2}

# Maximum number of chunks of plain files in a unit, and minimum number of such units per worker.
MOST_TOGETHER, UNITS_A_WORKER = 8, 4


@dataclass(frozen=True)
class LogFile:
    """One input file."""

    path: str
    size: int
    kind: Codec | Literal["parquet"]  # its compression, or ``parquet``
    header: bytes | None  # its header line, if the format has one; of a Parquet file its serialised schema
    first_line: bytes | None  # its first data line; None: no rows, or a Parquet file
    longest: int = MAX_LINE_BYTES  # maximum length of a line in bytes
    groups: tuple[int, ...] = ()  # rows of each row group of a Parquet file
    split: str | None = None  # the split of all its rows, if the split rule is by files
    called: str | None = None  # name in rejects and in the keys of rows instead of its path

    @property
    def source(self) -> str:
        """The file's name in rejects and in the keys of rows."""
        return self.path if self.called is None else self.called

    @property
    def header_lines(self) -> int:
        """Lines before the first data line."""
        return int(self.header is not None and self.kind != "parquet")

    def parser(
        self, spec: FeatureSchema, labelled: bool, extra: Sequence[str], tables: SideTables | None = None
    ) -> LineParser:
        """A parser for its lines. Raises UserError: a column is missing."""
        return LineParser(
            spec,
            self.header,
            labelled,
            source=self.source,
            extra=extra,
            first_line=self.first_line or b"",
            tables=tables,
        )


def discover(found: Sequence[tuple[str, int]], spec: FeatureSchema) -> list[LogFile]:
    """Read the beginning of every file: (path, bytes) pairs to log files, sorted by path; empty ones are left out.

    Raises:
        UserError: a file cannot be read, is not in the schema's format, or is truncated within its header line.
    """

    def look(item: tuple[str, int]) -> LogFile | None:
        path, size = item
        with files.open_raw(path) as stream:
            if spec.format.kind == "parquet":
                table = ParquetLog(stream, path)
                return LogFile(path, size, "parquet", table.header, None, groups=table.groups)
            longest = spec.format.max_line_bytes
            codec, blocks = open_text(path, stream, 1 << 16)
            lines = LineStream(without_mark(blocks), longest)
            header = header_line(lines, path) if has_header(spec) else None
            first = next(iter(lines.take(1)), None)
        if has_header(spec) and header is None:
            return None  # compressed, but empty
        return LogFile(path, size, codec, header, b"" if isinstance(first, LongLine) else first, longest)

    looked = files.in_threads(look, sorted(item for item in set(found) if item[1]))
    # Workers may have another working directory.
    return [replace(log, path=files.absolute(log.path), called=log.path) for log in looked if log is not None]


@dataclass(frozen=True)
class Chunk:
    """A chunk, or one of the small files that share a chunk. ``rows`` and the fields after it are set after the
    counting pass.
    """

    number: int  # index among all chunks of the job; small files that share a chunk have the same
    file: LogFile
    # first byte of a plain file's range; otherwise the number of lines of the stream before the chunk, header
    # included, or of rows before it in its row group
    start: int
    end: int  # end of a plain file's range, exclusive
    rows: int = 0  # data lines, including a broken end
    first_line: int = 1  # number of its first data line in the file, from 1
    first_row: int = 0  # number of its first data line among those of all files, from 0
    broken: bool = False  # whether it ends with the broken end of a compressed stream
    group: int = 0  # the row group of a Parquet file that it begins in


class Unit(NamedTuple):
    """Chunks that one worker processes together."""

    chunks: tuple[Chunk, ...]

    def to_bytes(self) -> bytes:
        """As JSON; each file once, since its first line may be long."""
        logs = list(dict.fromkeys(chunk.file for chunk in self.chunks))
        chunks = [{**vars(chunk), "file": logs.index(chunk.file)} for chunk in self.chunks]
        texts = [{**vars(log), "header": _text(log.header), "first_line": _text(log.first_line)} for log in logs]
        return json.dumps({"files": texts, "chunks": chunks}).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Unit:
        """Decode :meth:`to_bytes`. Raises ValueError, TypeError, KeyError or IndexError for other bytes."""
        found = json.loads(content)
        logs = []
        for log in found["files"]:
            texts = {name: log[name].encode("latin-1") for name in ("header", "first_line") if log[name] is not None}
            logs.append(LogFile(**{**log, **texts, "groups": tuple(log["groups"])}))
        return cls(tuple(Chunk(**{**chunk, "file": logs[chunk["file"]]}) for chunk in found["chunks"]))


def _text(line: bytes | None) -> str | None:
    return None if line is None else line.decode("latin-1")


def pieces_to_count(logs: Sequence[LogFile], chunk_bytes: int) -> list[Chunk]:
    """Byte ranges of plain files, and whole files of other kinds."""
    pieces: list[Chunk] = []
    for log in logs:
        step = chunk_bytes if log.kind == "plain" else log.size
        for start in range(0, log.size, step):
            pieces.append(Chunk(len(pieces), log, start, min(start + step, log.size)))
    return pieces


def count(piece: Chunk) -> Counted:
    """Count the data lines of a piece from :func:`pieces_to_count`."""
    log = piece.file
    if log.kind == "parquet":
        return Counted(piece.number, sum(log.groups))
    with _open(piece) as lines:
        lines.skip(0 if piece.start else log.header_lines)
        total = 0
        while counted := lines.skip(1 << 30):
            total += counted
        return Counted(piece.number, total, lines.broken is not None)


def divide(pieces: Sequence[Chunk], counts: Sequence[Counted], chunk_lines: int, chunk_bytes: int) -> list[Chunk]:
    """The chunks of the job, numbered, with their numbers and positions of rows.

    Consecutive files of one chunk each share a number as long as together they have at most ``chunk_lines`` rows and
    ``chunk_bytes`` bytes.
    """
    chunks: list[Chunk] = []
    first_row = 0
    before: dict[str, int] = {}
    for piece, counted in zip(pieces, counts, strict=True):
        log, headers = piece.file, piece.file.header_lines
        rows = counted.rows
        if log.kind == "plain":
            line = before.setdefault(log.path, headers) + 1
            before[log.path] += rows
            chunks.append(replace(piece, number=len(chunks), rows=rows, first_line=line, first_row=first_row))
        else:
            starts = [0, *accumulate(log.groups)]
            # Every chunk is serialised with its file, which may have thousands of row groups.
            log = replace(log, groups=())
            for at in range(0, rows, chunk_lines):
                size = min(chunk_lines, rows - at)
                group = bisect_right(starts, at) - 1
                chunks.append(
                    Chunk(
                        number=len(chunks),
                        file=log,
                        start=at - starts[group] if log.kind == "parquet" else headers + at,
                        end=0,
                        rows=size,
                        first_line=headers + at + 1,
                        first_row=first_row + at,
                        broken=counted.broken and at + size == rows,
                        group=group if log.kind == "parquet" else 0,
                    )
                )
        first_row += rows
    return _shared(chunks, chunk_lines, chunk_bytes)


def _shared(chunks: list[Chunk], most_rows: int, most_bytes: int) -> list[Chunk]:
    of_file = Counter(chunk.file.path for chunk in chunks)
    numbered: list[Chunk] = []
    number, rows, size = -1, 0, 0
    for chunk in chunks:
        small = of_file[chunk.file.path] == 1
        if not (small and rows and rows + chunk.rows <= most_rows and size + chunk.file.size <= most_bytes):
            number, rows, size = number + 1, 0, 0
        if small:
            rows, size = rows + chunk.rows, size + chunk.file.size
        numbered.append(replace(chunk, number=number))
    return numbered


def units(chunks: Sequence[Chunk], workers: int | None) -> list[list[Chunk]]:
    """Units of work: runs of chunks of a file, so that one chunk is written while the next one is read.

    Runs of plain files are short, several per worker; runs of streams as long as the number of workers allows. If
    that number is unknown (``None``), runs are as short as possible.
    """
    streams: dict[tuple[str, int], list[Chunk]] = {}
    result: list[list[Chunk]] = []
    most = max(1, min(MOST_TOGETHER, len(chunks) // (UNITS_A_WORKER * (workers or len(chunks) or 1))))
    for _, same in groupby(chunks, key=lambda chunk: chunk.number):
        chunk, *more = parts = list(same)
        if more:
            result.append(parts)
        elif chunk.file.kind != "plain":
            streams.setdefault((chunk.file.path, chunk.group), []).append(chunk)
        elif not chunk.rows:
            continue
        elif result and len(result[-1]) < most and result[-1][0].file.path == chunk.file.path:
            result[-1].append(chunk)
        else:
            result.append([chunk])
    for run in streams.values():
        most = min(MOST_SPANS[run[0].file.kind], len(run))
        spans = 1 if workers == 1 else min(-(-2 * (workers or most) // len(streams)), most)
        bounds = [len(run) * i // spans for i in range(spans + 1)]
        result += [run[a:b] for a, b in pairwise(bounds)]
    return sorted(result, key=lambda unit: unit[0].number)


@dataclass
class Lines:
    """Consecutive data lines (or rows) of a chunk; ``broken`` is the end of a broken stream and counts as a row."""

    first_line: int
    lines: Sequence[bytes]
    broken: BrokenEnd | None = None


def read_chunks(
    unit: Sequence[Chunk], batch: int, columns: Sequence[str] = ()
) -> Iterator[tuple[Chunk, Iterator[Lines]]]:
    """Read the chunks of a file in batches of lines, starting at each chunk's first line. To be consumed in order.

    Args:
        unit: chunks of one file, in order.
        batch: maximum number of lines per batch.
        columns: the columns of a Parquet file to read.

    Raises:
        UserError: while reading, if the file has changed since its lines were counted.
    """
    first = unit[0]
    if first.file.kind == "parquet":
        with files.open_raw(first.file.path) as stream:
            rows = ParquetLog(stream, first.file.path).rows(columns, first.group)
            rows.skip(first.start)
            for chunk in unit:
                yield chunk, _batches(chunk, rows, batch)
        return
    if first.file.kind == "plain":
        for chunk in unit:
            with _open(chunk) as lines:
                if not chunk.start:
                    lines.skip(chunk.file.header_lines)
                yield chunk, _batches(chunk, lines, batch)
        return
    with _open(first) as lines:
        lines.skip(first.start)
        for chunk in unit:
            yield chunk, _batches(chunk, lines, batch)


def read_piece(piece: Chunk, batch: int, columns: Sequence[str] = ()) -> Iterator[Lines]:
    """Read a piece from :func:`pieces_to_count`, which has not been counted; lines are numbered from 1."""
    log, done = piece.file, 0
    with ExitStack() as opened:
        lines: LineStream | TableStream
        if log.kind == "parquet":
            lines = ParquetLog(opened.enter_context(files.open_raw(log.path)), log.path).rows(columns)
        else:
            lines = opened.enter_context(_open(piece))
            lines.skip(0 if piece.start else log.header_lines)
        while taken := lines.take(batch):
            yield Lines(1 + done, taken)
            done += len(taken)
        if lines.broken is not None:
            yield Lines(1 + done, [], lines.broken)


@contextmanager
def _open(piece: Chunk) -> Iterator[LineStream]:
    """The lines of a plain file's range, or of a whole compressed file, header included."""
    log = piece.file
    assert log.kind != "parquet"
    with files.open_raw(log.path) as stream:
        if log.kind == "plain":
            blocks = range_blocks(stream, piece.start, piece.end)
        else:
            blocks = unpack(log.kind, read_blocks(stream))
        whole = log.kind != "plain" or piece.start == 0
        yield LineStream(without_mark(blocks) if whole else blocks, log.longest)


def _batches(chunk: Chunk, lines: LineStream | TableStream, batch: int) -> Iterator[Lines]:
    done, whole = 0, chunk.rows - chunk.broken
    while done < whole:
        taken = lines.take(min(batch, whole - done))
        if not taken:
            break
        yield Lines(chunk.first_line + done, taken)
        done += len(taken)
    ended = not lines.take(1) if chunk.broken or chunk.file.kind == "plain" else True
    if done < whole or not ended or chunk.broken != (lines.broken is not None and ended):
        raise UserError(f"{chunk.file.path} changed while it was read: run prepare again when it is complete")
    if chunk.broken and lines.broken is not None:
        yield Lines(chunk.first_line + done, [], lines.broken)
