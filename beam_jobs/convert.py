"""The conversion of a chunk: rows to records, one shard per split, and rejects."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np

from afm_ctr.io.texts import Texts
from afm_ctr.rawlog import LineParser, ParsedLines, Reject
from afm_ctr.records import BLOCK_RECORDS, ShardWriter, framed_examples
from afm_ctr.records.writer import Compression
from afm_ctr.schema import ResolvedSchema, columns_of
from afm_ctr.splitmix import GOLDEN, finalise
from afm_ctr.statistics import Collector
from beam_jobs import files
from beam_jobs.encode import Encoder
from beam_jobs.options import PrepareOptions
from beam_jobs.output import Output, load_schema
from beam_jobs.rejects import ChunkRejects, reject_file
from beam_jobs.results import Converted, ConvertedChunks
from beam_jobs.rows import RowReader, SplitRows, fingerprint64
from beam_jobs.sources import Chunk
from beam_jobs.splits import NO_SPLIT, SPLITS

_TRAIN = SPLITS.index("train")


def shuffled(rows: int, seed: int, chunk: int) -> np.ndarray:
    """A permutation that depends on (seed, chunk, rows) only: int64 [rows].

    The order of SplitMix64's hashes, so that it is independent of NumPy's version.
    """
    with np.errstate(over="ignore"):
        start = np.uint64((seed * 0x5851F42D4C957F2D + chunk * 0x2545F4914F6CDD1D) % 2**64)
        mixed = finalise(start + np.arange(1, rows + 1, dtype=np.uint64) * np.uint64(GOLDEN))
    return np.argsort(mixed, kind="stable")


class _Columns:
    """The good rows of a chunk, in preallocated arrays, and the statistics of its train rows."""

    def __init__(
        self, rows: int, schema: ResolvedSchema, rows_in: int, most_samples: int, multi_fields: Sequence[str]
    ) -> None:
        self.ids = np.empty((rows, schema.num_slots), np.int64)
        self.vals = np.empty((rows, schema.num_slots), np.float32)
        self.labels = np.empty(rows, np.float32)
        self.weights = np.empty(rows, np.float32)
        self.codes = np.empty(rows, np.int8)
        self.grouped = schema.spec.group is not None
        self.groups: list[bytes | None] = []
        self.keys: list[Texts] = []
        self.count = 0
        self.samples: list[dict[str, str]] = []  # the raw columns of the first few rows
        self.most_samples = most_samples
        self.sampled_out = 0
        # Of each multi-valued field the number of values beyond max_values, and of rows with such values.
        self.cut = np.zeros((2, len(multi_fields)), np.int64)
        self.statistics = Collector(schema, rows_in)

    def add(self, batch: SplitRows, ids: np.ndarray, vals: np.ndarray, kept: np.ndarray) -> None:
        """Add the rows ``kept`` (indices) of a batch."""
        parsed = batch.parsed
        some = slice(self.count, self.count + len(kept))
        self.count += len(kept)
        np.take(ids, kept, 0, self.ids[some], "clip")
        np.take(vals, kept, 0, self.vals[some], "clip")
        self.labels[some], self.weights[some] = parsed.labels[kept], parsed.weights[kept]
        self.codes[some] = batch.codes[kept]
        self.groups += [parsed.groups[i] for i in kept.tolist()] if self.grouped else []
        self.keys.append(Texts.of(parsed.keys).take(kept))


@dataclass
class Conversion:
    """The conversion pass. Picklable; workers read the schema from its folder, since vocabularies may be large."""

    reader: RowReader
    schema: str  # the folder with the resolved schema
    attempt: str  # the folder for this run's shards
    rejects: str  # the folder for its rejects
    rejects_kept: int  # maximum number of rejects to keep per reason
    seed: int  # of the order of rows in a shard
    compression: Compression
    rows: int  # data rows of the whole input
    sample_rows: int  # number of raw rows that the data set keeps

    finds = ConvertedChunks

    @classmethod
    def of(
        cls, options: PrepareOptions, reader: RowReader, schema: ResolvedSchema, output: Output, rows: int
    ) -> Conversion:
        """Create the pass of a job; writes the schema to a folder for the workers."""
        return cls(
            reader=reader,
            schema=output.save_schema(schema),
            attempt=output.attempt,
            rejects=output.work("rejects"),
            rejects_kept=options.max_rejects_kept,
            seed=options.seed,
            compression=options.compression,
            rows=rows,
            sample_rows=options.sample_rows,
        )

    def setup(self) -> None:
        """Load the schema and trace the transform: one function for all batches of this worker."""
        self.reader.setup()
        self._schema: ResolvedSchema = load_schema(self.schema)
        self._encode = Encoder(self._schema)
        # One thread for the worker's lifetime: malloc rarely reuses memory that another thread has freed.
        self._writer = ThreadPoolExecutor(1)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    def run(self, unit: Sequence[Chunk]) -> Iterator[ConvertedChunks]:
        """Convert the chunks of a unit, and yield the contents of each chunk's files.

        A chunk is written while the next one is encoded: encoding releases Python's GIL.
        """
        rows: Counter[int] = Counter()
        for chunk in unit:
            rows[chunk.number] += chunk.rows
        writing: Future[ConvertedChunks] | None = None
        weighted = False
        try:
            for number, batches in self.reader.read(unit, leave_columns=True):
                # The first chunks are enough for the sample rows.
                most_samples = self.sample_rows if number < self.sample_rows else 0
                columns = _Columns(rows[number], self._schema, self.rows, most_samples, self._encode.multi_fields)
                rejects = ChunkRejects(self.rejects_kept)
                for batch in batches:
                    weighted = batch.parser.weighted
                    self._add(batch, columns, rejects)
                if writing is not None:
                    yield writing.result()
                writing = self._writer.submit(self._finish, number, columns, rejects, weighted)
            if writing is not None:
                yield writing.result()
        finally:
            if writing is not None:
                wait([writing])

    def _finish(self, number: int, columns: _Columns, rejects: ChunkRejects, weighted: bool) -> ConvertedChunks:
        """Write the shards and rejects of a chunk."""
        shards = self._write(number, columns, weighted)
        if lines := rejects.lines():
            files.write(files.join(self.rejects, reject_file(number)), lines, durable=False)
        cut = dict(zip(self._encode.multi_fields, columns.cut.T.tolist(), strict=True))
        reasons = dict(sorted(rejects.counts.items()))
        converted = Converted(number, shards, reasons, columns.sampled_out, cut, columns.samples)
        return ConvertedChunks([converted], columns.statistics.partial())

    def _add(self, batch: SplitRows, columns: _Columns, rejects: ChunkRejects) -> None:
        chunk, parser, parsed = batch.chunk, batch.parser, batch.parsed
        columns.sampled_out += batch.sampled_out
        if not len(parsed):
            rejects.add(parsed.rejects)
            return
        ids, vals, bad, cut = self._encode(parsed)
        good = batch.codes != NO_SPLIT
        wrong = good & bad.any(axis=1)
        bad_cells, more = self._bad_cells(parsed, parser, np.flatnonzero(wrong), bad, rejects)
        rejects.add([*parsed.rejects, *bad_cells])
        rejects.counts += more
        good &= ~wrong
        kept = np.flatnonzero(good)
        columns.add(batch, ids, vals, kept)
        columns.cut += [cut[kept].sum(axis=0), (cut[kept] > 0).sum(axis=0)]
        shown = parser.columns_of(parsed, kept[: columns.most_samples - len(columns.samples)])
        texts = ([cell.decode() for cell in cells.tolist()] for cells in shown.values())
        columns.samples += [dict(zip(shown, row, strict=True)) for row in zip(*texts, strict=True)]
        train = kept[batch.codes[kept] == _TRAIN]
        columns.statistics.add(ids[train], parsed.labels[train])
        numbers = parsed.line_numbers[train] - chunk.first_line + chunk.first_row
        statistics, spans = columns.statistics, parsed.spans
        sampled = statistics.sampled(numbers)
        if len(sampled):
            some = train[sampled]
            cells = spans.take(some).texts(statistics.sample_columns) if spans else parser.columns_of(parsed, some)
            statistics.add_sample(numbers[sampled], cells, ids[some], parsed.labels[some])

    def _bad_cells(
        self, parsed: ParsedLines, parser: LineParser, rows: np.ndarray, bad: np.ndarray, rejects: ChunkRejects
    ) -> tuple[list[Reject], Counter[str]]:
        """The rejects of rows with a bad cell to keep, and the counts of the others by reason."""
        made: list[Reject] = []
        more: Counter[str] = Counter()
        room: dict[str, int] = {}
        for row, index in zip(rows.tolist(), bad[rows].argmax(axis=1).tolist(), strict=True):
            reason = self._schema.spec.bad_reason(self._schema.spec.fields[index])
            assert reason is not None
            if room.setdefault(reason, rejects.room(reason)) > 0:
                room[reason] -= 1
                made.append(self._bad_cell(parsed, parser, row, index, reason))
            else:
                more[reason] += 1
        return made, more

    def _bad_cell(self, parsed: ParsedLines, parser: LineParser, row: int, index: int, reason: str) -> Reject:
        field = self._schema.spec.fields[index]
        cell = parser.cells_of(parsed, row)[columns_of(field)[0]].decode("utf-8")
        return parsed.reject(row, reason, f"field {field.name!r}: {cell if len(cell) < 80 else cell[:79] + '…'!r}")

    def _write(self, chunk: int, columns: _Columns, weighted: bool) -> list[dict[str, Any]]:
        count, keys = columns.count, Texts.joined(columns.keys)
        ids, vals, labels, codes = columns.ids, columns.vals, columns.labels, columns.codes[:count]
        weights = columns.weights if weighted else None
        groups = _fingerprints(columns.groups) if columns.grouped else None
        order = shuffled(count, self.seed, chunk)
        shards = []
        for code, split in enumerate(SPLITS):
            rows = order[codes[order] == code]
            if not len(rows):
                continue
            name = f"{split}/part-{chunk:05d}.tfrecord"
            with (
                files.creating(files.join(self.attempt, name)) as stream,
                # Closed before the stream, also if a write fails: gzip flushes when it is closed.
                contextlib.closing(ShardWriter(stream, BLOCK_RECORDS, self.compression)) as writer,
            ):
                for at in range(0, len(rows), 16 * BLOCK_RECORDS):
                    some = rows[at : at + 16 * BLOCK_RECORDS]
                    writer.write(
                        framed_examples(
                            ids,
                            vals,
                            labels[some],
                            None if weights is None else weights[some],
                            None if groups is None else (groups[0][some], groups[1][some]),
                            keys.take(some),
                            some,
                        )
                    )
                stats = writer.close()
            shards.append(
                {
                    "split": split,
                    "file": name,
                    "positives": int((labels[rows] > 0).sum()),
                    "label_sums": _label_sums(labels[rows], None if weights is None else weights[rows]),
                    "compression": self.compression,
                    "block_records": BLOCK_RECORDS,
                    **stats._asdict(),
                }
            )
        return shards


def _label_sums(labels: np.ndarray, weights: np.ndarray | None) -> tuple[float, float] | None:
    """Σ weight and Σ weight · label of rows, correctly rounded; None if a label is missing."""
    if np.isnan(labels).any():
        return None
    if weights is None and ((labels == 0) | (labels == 1)).all():
        return float(len(labels)), float(np.count_nonzero(labels))
    wide = np.ones(len(labels)) if weights is None else weights.astype(np.float64)
    return math.fsum(wide), math.fsum(wide * labels)


def _fingerprints(groups: list[bytes | None]) -> tuple[np.ndarray, np.ndarray]:
    """Group cells as stored in records: int64 [n] (Fingerprint64, two's complement), and bool [n]: has a group."""
    present = np.array([group is not None for group in groups], bool)
    return fingerprint64([group or b"" for group in groups]).view(np.int64), present
