"""Scores raw log lines through a server: gRPC, signature ``raw``, one JSON object per input line, in order."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import deque
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import grpc

from afm_ctr.errors import UserError
from afm_ctr.io.files import as_user_error, refuse_input, write_json_lines
from afm_ctr.io.inputs import check_input
from afm_ctr.rawlog import ParsedLines, parse_log
from afm_ctr.rawlog.side import side_tables_beside
from afm_ctr.schema import FeatureSchema, read_yaml, validate
from afm_ctr.sidetables import SideTables
from afm_ctr.visible import counted
from serving.client import Client, Outputs, Pending
from serving.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound, ServingError

SIGNATURE = "raw"

_FIRST = ("probability", "score", "logit")


@dataclasses.dataclass(frozen=True)
class ScoreSummary:
    """Result of :func:`score_file`."""

    output: str
    rows: int  # lines written: one per data line of the input
    errors: int  # lines with an ``error`` instead of a score
    unread: int  # scored rows with cells that the model could not read and treated as missing (``bad_cells``)
    versions: list[int]  # the versions of the model that answered
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        speed = self.rows / max(self.seconds, 1e-9)
        errors = "1 of them an error" if self.errors == 1 else f"{self.errors:,} of them errors"
        by = ", ".join(str(version) for version in self.versions) or "none"
        line = f"{self.output}: {counted(self.rows, 'row')}, {errors}, {speed:,.0f} rows/s, version {by}"
        if self.unread:
            line += (
                f"\ncells that the model could not read, and treated as missing, in {counted(self.unread, 'row')} "
                "(bad_cells): compare the log with the schema of the model's data"
            )
        return line


def score_file(
    target: str,
    model_name: str,
    schema_path: str | Path,
    input_path: str | Path,
    output_path: str | Path,
    batch_size: int = 512,
    *,
    version: int | None = None,
    label: str | None = None,
    credentials: grpc.ChannelCredentials | None = None,
    timeout: float = 10.0,
    max_in_flight: int = 4,
) -> ScoreSummary:
    """Score a raw log: text, plain or compressed, or Parquet, as the schema says. Labels are not read.

    Each line of the output has ``key``, ``line`` (its number in the input, from 1), ``probability`` (or ``score``),
    ``logit`` and ``bad_cells`` (cells that could not be read and were treated as missing); or ``key``, ``line`` and
    ``error`` if the input line is not a row. The file appears once it is complete.

    Args:
        schema_path: The feature schema of the log: the user's, or a resolved one. Side tables are read from the
            paths in the user's schema, or from the copies next to a resolved one.

    Raises:
        UserError: the schema, the log or the server is missing, or they do not match.
    """
    refuse_input(output_path, [input_path, schema_path])
    spec = load_spec(schema_path)
    check_log(input_path)
    tables = side_tables_beside(schema_path, spec)
    began = time.monotonic()
    try:
        client = Client(
            target,
            model_name,
            version,
            label,
            timeout,
            max_in_flight=max_in_flight,
            credentials=credentials,
            allow_bad_cells=True,  # each line of the output gives their number
        )
    except ValueError as error:
        raise UserError(f"score: {error}") from error
    with client:
        try:
            check_columns("score", spec.raw_columns, client, schema_path)
            job = _Job(client, spec, tables, str(input_path), batch_size)
            with as_user_error(f"score: cannot write {output_path}"):
                rows, errors = write_json_lines(output_path, job.lines())
        except ServingError as error:
            raise UserError(f"score: {_explained(error, batch_size)}") from error
    return ScoreSummary(str(output_path), rows, errors, job.unread, sorted(job.versions), time.monotonic() - began)


def check_log(path: str | Path) -> None:
    """Refuse a log that cannot be read, before any call to the server. Raises UserError."""
    with as_user_error(f"--input {path}: cannot read it"):
        check_input(path)


def load_spec(path: str | Path) -> FeatureSchema:
    """Load a feature schema: the user's, or the one inside a resolved ``schema.yaml``.

    Raises:
        UserError: no such file, or not a schema.
    """
    file = Path(path) / "schema.yaml" if Path(path).is_dir() else Path(path)
    content = read_yaml(file)
    if isinstance(content, dict) and "format_version" in content and "spec" in content:
        content = content["spec"]
    return validate(FeatureSchema, content, file)


class _Job:
    """Scores the lines of one log with several batches in flight."""

    def __init__(self, client: Client, spec: FeatureSchema, tables: SideTables | None, source: str, batch_size: int):
        self.versions: set[int] = set()
        self.unread = 0
        self._client = client
        self._spec = spec
        self._tables = tables
        self._source = source
        self._batch_size = batch_size

    def lines(self) -> Iterator[dict[str, Any]]:
        """One object per data line, in order."""
        waiting: deque[tuple[ParsedLines, Pending | None]] = deque()
        try:
            for parsed in parse_log(
                self._source, self._spec, labelled=False, batch_rows=self._batch_size, tables=self._tables
            ):
                pending = self._client.submit(parsed.columns, SIGNATURE) if len(parsed) else None
                waiting.append((parsed, pending))
                if len(waiting) >= self._client.max_in_flight:
                    yield from self._finish(*waiting.popleft())
            while waiting:
                yield from self._finish(*waiting.popleft())
        finally:
            for _, pending in waiting:
                if pending is not None:
                    pending.cancel()

    def _finish(self, parsed: ParsedLines, pending: Pending | None) -> list[dict[str, Any]]:
        answers: list[dict[str, Any]] = []
        if pending is not None:
            try:
                answers = self._answers(pending.result(), len(parsed))
            except FailedPrecondition:
                raise
            except InvalidArgument as error:
                answers = self._one_by_one(parsed, 0, len(parsed), error)
        self.unread += sum(bool(answer.get("bad_cells")) for answer in answers)
        rows = [
            {"key": _text(key), "line": line, **answer}
            for key, line, answer in zip(parsed.keys, parsed.line_numbers.tolist(), answers, strict=True)
        ]
        for reject in parsed.rejects:
            said = f"{reject.reason}: {reject.detail}" if reject.detail else reject.reason
            rows.append({"key": _text(reject.key), "line": reject.line, "error": said})
        return sorted(rows, key=lambda row: row["line"])

    def _one_by_one(self, parsed: ParsedLines, start: int, stop: int, error: InvalidArgument) -> list[dict[str, Any]]:
        """Score rows that the server refused as a batch, bisecting it down to the rows at fault."""
        if stop - start == 1:
            return [{"error": str(error)}]
        middle = (start + stop) // 2
        answers = []
        for low, high in ((start, middle), (middle, stop)):
            columns = {name: cells[low:high] for name, cells in parsed.columns.items()}
            try:
                answers += self._answers(self._client.predict(columns, SIGNATURE), high - low)
            except InvalidArgument as narrower:
                answers += self._one_by_one(parsed, low, high, narrower)
        return answers

    def _answers(self, outputs: Outputs, rows: int) -> list[dict[str, Any]]:
        self.versions.add(outputs.version)
        ordered = [*filter(outputs.__contains__, _FIRST), *sorted(outputs.keys() - _FIRST)]
        flat = {name: outputs[name] for name in ordered if outputs[name].ndim == 1}
        short = [name for name, array in flat.items() if len(array) != rows]
        if short or not flat:
            raise ServingError(f"the model's {', '.join(short) or 'answer'} is not one value per row", "INTERNAL")
        lists = [array.tolist() for array in flat.values()]
        return [_answer(dict(zip(flat, values, strict=True))) for values in zip(*lists, strict=True)]


def _answer(values: dict[str, Any]) -> dict[str, Any]:
    wrong = [name for name, value in values.items() if isinstance(value, float) and not math.isfinite(value)]
    return {"error": f"the model's {wrong[0]} is not a finite number"} if wrong else values


def check_columns(command: str, columns: Collection[str], client: Client, schema_path: str | Path) -> None:
    """Check that a schema and the served model have the same raw columns.

    Raises:
        UserError: they differ; the message begins with ``command``.
    """
    ours, theirs = set(columns), set(client.string_columns(SIGNATURE))
    different = [f"the model also needs {name}" for name in sorted(theirs - ours)]
    different += [f"the model has no {name}" for name in sorted(ours - theirs)]
    if different:
        raise UserError(
            f"{command}: {schema_path} is not the schema of model {client.model_name} at {client.target}: "
            f"{', '.join(different[:3])}{' and more' if len(different) > 3 else ''}"
        )


def _explained(error: ServingError, batch_size: int) -> str:
    if isinstance(error, DeadlineExceeded):
        return f"{error}; give more time (--timeout) or send fewer rows at once (--batch-size, now {batch_size})"
    if isinstance(error, NotFound):
        return f"{error}; see what is served: --model-name, --model-version, --label"
    return str(error)


def _text(key: bytes) -> str:
    return key.decode("utf-8", "replace")
