"""The input files of a job, and their division into chunks.

A chunk is the unit of work: a byte range of a plain file (it owns the lines that start in it), or a fixed number of
lines of a gzip stream, which cannot be entered half-way. Chunks are numbered through the files in the order of their
names, so number and content depend on the input alone and never on a runner, its workers or its bundles.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from afm_ctr.errors import UserError
from afm_ctr.rawlog import LineParser, has_header
from afm_ctr.rawlog.lines import BYTE_ORDER_MARK, GZIP_MAGIC, LineStream, gunzip, is_gzip, range_blocks, read_blocks
from afm_ctr.schema import FeatureSchema
from beam_jobs import files

CHUNK_BYTES = 8 << 20
CHUNK_LINES = 32768
# A span of a gzip stream unpacks all before it to get there, at some twenty times the speed of the conversion:
# a handful of spans keeps several workers busy at a cost that stays linear.
MOST_SPANS = 8


@dataclass(frozen=True)
class LogFile:
    """One input file.

    Attributes:
        packed: whether it is gzip.
        header: its header line, when the format has one.
        first_line: its first data line; None = it has no rows.
        split: the split that all its rows belong to, when the split rule goes by files.
    """

    path: str
    size: int
    packed: bool
    header: bytes | None
    first_line: bytes | None
    split: str | None = None

    def parser(self, spec: FeatureSchema, labelled: bool, extra: Sequence[str]) -> LineParser:
        """A parser for its lines. Raises UserError when a column is missing."""
        return LineParser(
            spec, self.header, labelled, source=self.path, extra=extra, first_line=self.first_line or b""
        )


def discover(found: Sequence[tuple[str, int]], spec: FeatureSchema) -> list[LogFile]:
    """Look at the start of every file: (path, bytes) pairs to log files, sorted by path; empty files are left out.

    Raises:
        UserError: a file cannot be read, or is a gzip stream that breaks off before its first line ends.
    """

    def look(item: tuple[str, int]) -> LogFile | None:
        path, size = item
        with files.open_raw(path) as stream:
            packed = is_gzip(path, stream.read(len(GZIP_MAGIC)))
            stream.seek(0)
            blocks = read_blocks(stream, 1 << 16)
            lines = LineStream(gunzip(blocks) if packed else blocks)
            header = next(iter(lines.take(1)), None) if has_header(spec) else None
            first = next(iter(lines.take(1)), None)
        if has_header(spec) and header is None:
            if lines.broken is not None:
                raise UserError(f"{path}: no header line: {lines.broken.detail}; repair the file or leave it out")
            return None  # packed, but empty all the same
        return LogFile(path, size, packed, header, first)

    looked = files.in_threads(look, sorted(item for item in set(found) if item[1]))
    return [log for log in looked if log is not None]


@dataclass(frozen=True)
class Chunk:
    """A piece of one file. Before the counting pass ``rows`` and all that follows is unknown.

    Attributes:
        number: position among all chunks of the job.
        start: first byte of a plain file's range; for gzip the lines of the stream before the first of this chunk,
            header included.
        end: the byte behind the range; unused for gzip.
        rows: data lines, broken end included.
        first_line: number of its first data line in the file, from 1.
        first_row: number of its first data line among those of all files, from 0.
        broken: whether it ends in the broken end of a gzip stream.
    """

    number: int
    file: LogFile
    start: int
    end: int
    rows: int = 0
    first_line: int = 1
    first_row: int = 0
    broken: bool = False


@dataclass(frozen=True)
class Counted:
    """What the counting pass says of a piece: data lines (header left out), and whether the stream is broken."""

    lines: int
    broken: bool = False


def pieces_to_count(logs: Sequence[LogFile], chunk_bytes: int) -> list[Chunk]:
    """Byte ranges of plain files, and whole gzip files."""
    pieces: list[Chunk] = []
    for log in logs:
        step = log.size if log.packed else chunk_bytes
        for start in range(0, log.size, step):
            pieces.append(Chunk(len(pieces), log, start, min(start + step, log.size)))
    return pieces


def count(piece: Chunk) -> Counted:
    """Count the data lines of a piece from :func:`pieces_to_count`."""
    log = piece.file
    with files.open_raw(log.path) as stream:
        lines = LineStream(
            gunzip(read_blocks(stream)) if log.packed else range_blocks(stream, piece.start, piece.end)
        )
        if piece.start == 0 and log.header is not None:
            lines.skip(1)
        total = 0
        while counted := lines.skip(1 << 30):
            total += counted
        return Counted(total, lines.broken is not None)


def divide(pieces: Sequence[Chunk], counts: Sequence[Counted], chunk_lines: int) -> list[Chunk]:
    """The chunks of the job, numbered, each with its rows and where they are."""
    chunks: list[Chunk] = []
    first_row = 0
    before: dict[str, int] = {}
    for piece, counted in zip(pieces, counts, strict=True):
        log = piece.file
        headers = int(log.header is not None)
        rows = counted.lines + counted.broken
        if not log.packed:
            line = before.setdefault(log.path, headers) + 1
            before[log.path] += rows
            chunks.append(replace(piece, number=len(chunks), rows=rows, first_line=line, first_row=first_row))
        else:
            for at in range(0, rows, chunk_lines):
                size = min(chunk_lines, rows - at)
                chunks.append(
                    Chunk(
                        number=len(chunks),
                        file=log,
                        start=headers + at,
                        end=0,
                        rows=size,
                        first_line=headers + at + 1,
                        first_row=first_row + at,
                        broken=counted.broken and at + size == rows,
                    )
                )
        first_row += rows
    return chunks


def units(chunks: Sequence[Chunk], workers: int) -> list[list[Chunk]]:
    """What is handed to workers: single chunks of plain files, runs of chunks of a gzip file."""
    packed: dict[str, list[Chunk]] = {}
    result: list[list[Chunk]] = []
    for chunk in chunks:
        if chunk.file.packed:
            packed.setdefault(chunk.file.path, []).append(chunk)
        elif chunk.rows:
            result.append([chunk])
    for run in packed.values():
        spans = 1 if workers == 1 else min(MOST_SPANS, -(-2 * workers // len(packed)), len(run))
        bounds = [len(run) * i // spans for i in range(spans + 1)]
        result += [run[a:b] for a, b in pairwise(bounds)]
    return sorted(result, key=lambda unit: unit[0].number)


@dataclass
class Lines:
    """Consecutive data lines of a chunk; ``broken`` is the raw end of a broken gzip stream, which counts as a row."""

    first_line: int
    lines: list[bytes]
    broken: tuple[bytes, str] | None = None


def read_unit(unit: Sequence[Chunk], batch: int) -> Iterator[tuple[Chunk, Iterator[Lines]]]:
    """Each chunk of a unit with its lines in batches that begin at the chunk's first line. To be read in order.

    Raises:
        UserError: while reading, if a file no longer holds the lines that were counted.
    """
    log = unit[0].file
    with files.open_raw(log.path) as stream:
        if log.packed:
            lines = LineStream(gunzip(read_blocks(stream)))
            lines.skip(unit[0].start)
        else:
            lines = LineStream(range_blocks(stream, unit[0].start, unit[0].end))
            lines.skip(int(unit[0].start == 0 and log.header is not None))
        for chunk in unit:
            yield chunk, _batches(chunk, lines, batch)


def _batches(chunk: Chunk, lines: LineStream, batch: int) -> Iterator[Lines]:
    done, whole = 0, chunk.rows - chunk.broken
    while done < whole:
        taken = lines.take(min(batch, whole - done))
        if not taken:
            break
        first = chunk.first_line + done
        if first == 1:
            taken[0] = taken[0].removeprefix(BYTE_ORDER_MARK)
        yield Lines(first, taken)
        done += len(taken)
    ended = not lines.take(1) if chunk.broken or not chunk.file.packed else True
    if done < whole or not ended or chunk.broken != (lines.broken is not None and ended):
        raise UserError(f"{chunk.file.path} changed while it was read: run prepare again when it is complete")
    if chunk.broken and lines.broken is not None:
        yield Lines(chunk.first_line + done, [], (lines.broken.raw, lines.broken.detail))
