"""Scoring without a server: prepared records or raw logs to a JSON Lines file."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from afm_ctr.errors import UserError, find_user_error
from afm_ctr.features import FeatureTransform
from afm_ctr.io.files import refusal, refuse_input, write_json_lines
from afm_ctr.io.inputs import input_files
from afm_ctr.io.paths import refuse_text
from afm_ctr.rawlog import ColumnTypes, parse_log, word_columns
from afm_ctr.records import Manifest, Reader
from afm_ctr.sidetables import SideTables
from afm_ctr.training.evaluation import check_readable, scoring_batch
from afm_ctr.training.model_io import Which, make_scorer, open_run
from afm_ctr.visible import counted

BATCH_ROWS = 4096
LOG_ROWS = 1024  # the last batch of a log is padded, and many logs are short


@dataclasses.dataclass(frozen=True)
class PredictSummary:
    """What was written.

    Attributes:
        output: the file.
        rows: lines in it: rows scored and errors.
        errors: lines that hold an ``error`` in place of a score.
        seconds: duration.
    """

    output: str
    rows: int
    errors: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        speed = self.rows / max(self.seconds, 1e-9)
        errors = "1 of them an error" if self.errors == 1 else f"{self.errors:,} of them errors"
        return f"{self.output}: {counted(self.rows, 'row')}, {errors}, {speed:,.0f} rows/s"


def predict(
    model_dir: str | Path,
    output: str | Path,
    *,
    data: str | Path | None = None,
    split: str = "test",
    inputs: Iterable[str] | None = None,
    which: Which = "best",
) -> PredictSummary:
    """Score a split of a prepared data set (:func:`predict_records`) or raw logs (:func:`predict_logs`) into a file.

    Args:
        model_dir: a run's folder, written by ``train``.
        output: the JSON Lines file.
        data: a prepared data set; or
        split: of ``data``.
        inputs: paths and globs of raw logs.
        which: the ``best`` checkpoint or the ``latest``.

    Raises:
        UserError: neither or both of ``data`` and ``inputs`` are given; also as those functions.
    """
    refuse_text(inputs)
    logs = list(inputs or [])
    if (data is None) == (not logs):
        raise UserError("predict: give either data= (a prepared data set) or inputs= (raw logs)")
    if data is not None:
        return predict_records(model_dir, data, split, output, which=which)
    return predict_logs(model_dir, logs, output, which=which)


def predict_records(
    model_dir: str | Path,
    data_dir: str | Path,
    split: str,
    output: str | Path,
    *,
    which: Which = "best",
    batch_rows: int = BATCH_ROWS,
) -> PredictSummary:
    """Score a split of a prepared data set, in its file order.

    Each line: ``key``, ``label`` if the data has labels, ``probability`` (or ``score``, for squared loss), ``logit``.

    Raises:
        UserError: no such run or split, a foreign schema, a damaged file.
    """
    model, schema, *_ = open_run(model_dir, which)
    reader = Reader(
        data_dir, split, scoring_batch(Manifest.load(data_dir).split_rows(split), batch_rows), shuffle=False
    )
    check_readable(schema, reader.schema, data_dir)
    score, name, labelled = make_scorer(model, reader.local_batch), model.output_name, reader.manifest.labelled

    columns = ("feature_ids", "feature_vals", "label", "key")

    def lines() -> Iterator[dict[str, Any]]:
        for step, batch in enumerate(reader.dataset(0, columns=columns)):
            logits, predictions = (t.numpy() for t in score(batch["feature_ids"], batch["feature_vals"]))
            keys, labels = batch["key"].numpy(), batch["label"].numpy()
            for row in range(reader.local_rows(step)):
                line: dict[str, Any] = {"key": _text(keys[row])}
                if labelled:
                    line["label"] = _number(labels[row])
                yield line | {name: _number(predictions[row]), "logit": _number(logits[row])}

    return _write(output, lines(), reader)


def predict_logs(
    model_dir: str | Path,
    inputs: Iterable[str],
    output: str | Path,
    *,
    which: Which = "best",
    batch_rows: int = LOG_ROWS,
) -> PredictSummary:
    """Score raw logs, one output line per data line, in order; labels are neither needed nor read.

    Each line: ``key``, ``probability`` (or ``score``), ``logit`` and ``bad_cells``, the number of unreadable cells,
    which are treated as missing; or ``key`` and ``error`` for a line that is not a row.

    Args:
        model_dir: a run's folder, written by ``train``.
        inputs: paths and globs of local files: text, plain or compressed, or Parquet, as the schema says; the files
            of a glob in order of their names.
        output: the JSON Lines file.
        which: the ``best`` checkpoint or the ``latest``.
        batch_rows: lines scored at a time.

    Raises:
        UserError: no such run or file, or a missing column.
    """
    paths = input_files(inputs)
    refuse_input(output, paths)
    model, schema, *_ = open_run(model_dir, which)
    tables = SideTables.load(model_dir, schema.spec)
    transform, score, name = FeatureTransform(schema), make_scorer(model, batch_rows), model.output_name
    columns = {column: tf.TensorSpec([batch_rows], tf.string) for column in schema.raw_columns}

    @tf.function(input_signature=[columns], autograph=False)
    def score_columns(cells: dict[str, tf.Tensor]) -> tuple[tf.Tensor, ...]:
        encoded = transform(cells)
        bad_cells = tf.reduce_sum(tf.cast(encoded.bad, tf.int32), axis=1)
        return (*score(encoded.feature_ids, encoded.feature_vals), bad_cells)

    def lines() -> Iterator[dict[str, Any]]:
        types = ColumnTypes(word_columns(schema.spec), schema)
        for path in paths:
            for parsed in parse_log(
                path, schema.spec, labelled=False, batch_rows=batch_rows, tables=tables, types=types
            ):
                numbered: list[tuple[int, dict[str, Any]]] = []
                if len(parsed):
                    padding = np.full(batch_rows - len(parsed), b"", object)
                    cells = {c: tf.constant(np.r_[parsed.columns[c], padding], tf.string) for c in columns}
                    logits, predictions, bad = (t.numpy() for t in score_columns(cells))
                    for row, at in enumerate(parsed.line_numbers.tolist()):
                        line = {"key": _text(parsed.keys[row]), name: _number(predictions[row])}
                        numbered.append((at, line | {"logit": _number(logits[row]), "bad_cells": int(bad[row])}))
                for reject in parsed.rejects:
                    said = f"{reject.reason}: {reject.detail}" if reject.detail else reject.reason
                    numbered.append((reject.line, {"key": _text(reject.key), "error": said}))
                numbered.sort(key=lambda one: one[0])
                yield from (line for _, line in numbered)

    return _write(output, lines())


def _write(output: str | Path, lines: Iterator[dict[str, Any]], reader: Reader | None = None) -> PredictSummary:
    """Write the lines to a temporary file that is renamed when complete."""
    target = Path(output)
    began = time.monotonic()
    try:
        rows, errors = write_json_lines(target, lines)
    except OSError as error:
        raise UserError(f"cannot write {target}: {refusal(error)}") from error
    except Exception as error:
        mistake = find_user_error(error) if reader is None else reader.mistake_behind(error)
        if mistake is None:
            raise
        raise mistake from error
    return PredictSummary(str(target), rows, errors, time.monotonic() - began)


def _text(key: bytes) -> str:
    return key.decode("utf-8", "replace")


def _number(value: np.floating[Any]) -> float | None:
    """A float as JSON: null if it is not finite."""
    return float(value) if np.isfinite(value) else None
