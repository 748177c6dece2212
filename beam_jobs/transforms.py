"""For pipelines of one's own: rows of any source, as dicts, to logs that ``prepare`` reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics  # type: ignore[attr-defined]

from afm_ctr.errors import UserError
from beam_jobs import files


class WriteRawLogs(beam.PTransform):  # type: ignore[type-arg]  # takes no types at run time
    """A PCollection of dicts to JSON Lines files, for a schema with ``format: {kind: jsonl}``.

    Rows are divided among the files by a hash of their key, and sorted by key (then by their text) in each. So equal
    rows give equal files, and by ``prepare`` equal shards, whatever the source, the order, the runner and its
    workers; without a key of its own for each row this holds for whole duplicates alone. A file's rows are in the
    memory of one worker: choose ``shards`` so that one is some hundred MB at most.

    A value may be a text, number, boolean, None, date or time (as ISO 8601), or a list of those.

    Args:
        folder: where the files go, local or of a file system that Beam knows; every worker must reach it.
        key: the column that tells rows apart.
        shards: number of files; those that would be empty are not written.

    Returns:
        A PCollection of the paths of the files.

    Raises:
        UserError: ``folder`` holds files already, ``shards`` is below 1; while it runs: a row without the key, a
            value of another type.
    """

    def __init__(self, folder: str, key: str, shards: int = 16) -> None:
        super().__init__()
        if shards < 1:
            raise UserError(f"shards={shards} must be at least 1")
        if files.names(folder):
            raise UserError(f"{folder} holds files already: choose another folder")
        self._folder, self._key, self._shards = folder, key, shards

    def expand(self, rows: Any) -> Any:
        return (
            rows
            | "Lines" >> beam.ParDo(_Lines(self._key, self._shards))
            | "By file" >> beam.GroupByKey()
            | "Write" >> beam.ParDo(_Files(self._folder, self._shards))
        )


@beam.typehints.with_output_types(tuple[int, tuple[str, str]])
class _Lines(beam.DoFn):
    """Of a row: (file, (key, line))."""

    def __init__(self, key: str, shards: int) -> None:
        self._key, self._shards = key, shards

    def process(self, row: Mapping[str, Any]) -> Iterator[tuple[int, tuple[str, str]]]:
        if row.get(self._key) is None:
            raise UserError(f"a row has no {self._key!r}; its columns: {', '.join(map(str, row))}"[:300])
        key = str(row[self._key])
        line = json.dumps(dict(row), ensure_ascii=False, sort_keys=True, default=_text)
        file = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") % self._shards
        yield file, (key, line)


def _text(value: Any) -> Any:
    if isinstance(value, date):  # a datetime is one
        return value.isoformat()
    raise UserError(
        f"a value of type {type(value).__name__} ({value!r:.60}): make a text, number or list of it first"
    )


@beam.typehints.with_output_types(str)
class _Files(beam.DoFn):
    """Writes a file; a bundle that is repeated writes the same one again."""

    def __init__(self, folder: str, shards: int) -> None:
        self._folder, self._shards = folder, shards

    def setup(self) -> None:
        files.share_client()

    def process(self, group: tuple[int, Iterable[tuple[str, str]]]) -> Iterator[str]:
        number, rows = group
        lines = [line for _, line in sorted(rows)]
        path = files.join(self._folder, f"part-{number:05d}-of-{self._shards:05d}.jsonl")
        files.write(path, "".join(f"{line}\n" for line in lines).encode(), durable=False)
        Metrics.counter("afm_ctr", "raw_rows").inc(len(lines))
        yield path
