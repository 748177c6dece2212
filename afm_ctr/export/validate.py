"""Checks whether a server may load an exported folder, in a process without this package."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from afm_ctr.errors import UserError
from afm_ctr.export.contract import SCORES, signature_faults
from afm_ctr.export.float16 import halve_vectors
from afm_ctr.export.streamed import HALF_BITS
from afm_ctr.export.warmup import read_warmup
from afm_ctr.features import FeatureTransform
from afm_ctr.io.files import sha256_of
from afm_ctr.models import CTRModel
from afm_ctr.records import serialize_examples
from afm_ctr.sample_rows import load_samples, made_up_rows
from afm_ctr.schema import ResolvedSchema
from afm_ctr.training.model_io import Which, open_run
from serving.server.versions import version_folders
from serving.tensors import to_array

_SECONDS = 600
_RANDOM_ROWS = 256
_MADE_UP_ROWS = 32
TOLERANCE = 1e-5

Arrays = dict[str, np.ndarray]
Requests = list[tuple[str, Arrays]]
Inspect = Callable[[str, Requests], dict[str, Any]]


class Check(NamedTuple):
    """A check and its result. ``passed`` is None if it was not run."""

    name: str
    passed: bool | None
    detail: str


@dataclass(frozen=True)
class Validation:
    """All checks in order; those after the first that failed are not run."""

    folder: str
    checks: list[Check] = field(default_factory=list)

    @property
    def failed(self) -> Check | None:
        """The first check that failed."""
        return next((check for check in self.checks if check.passed is False), None)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "folder": self.folder,
            "valid": self.failed is None,
            "checks": [check._asdict() for check in self.checks],
        }


class Expected(NamedTuple):
    """Requests, and the checkpoint's outputs by name for each."""

    schema_id: str
    requests: list[tuple[str, Arrays]]
    answers: list[Arrays]
    described: str


class _Failed(Exception):
    """A check failed; the text explains how."""


def validate_export(
    export_dir: str | Path,
    model_dir: str | Path | None = None,
    which: Which = "best",
    *,
    inspect: Inspect | None = None,
) -> Validation:
    """Check an exported version folder against everything that the export promises.

    Args:
        export_dir: one version, written by ``export``.
        model_dir: the run that it was exported from: then every score is compared with the checkpoint's.
        inspect: loads the folder and answers requests; default: :mod:`afm_ctr.export.clean_process` in a separate
            process.

    Raises:
        UserError: no such folder or run, or the folder is not a version. A check that fails raises nothing.
    """
    folder = Path(export_dir)
    if not (folder / "saved_model.pb").is_file():
        versions = version_folders(folder) if folder.is_dir() else {}
        hint = f"; give one version: {versions[max(versions)]}" if versions else ""
        raise UserError(f"validate-export: {folder} holds no saved_model.pb{hint}")
    expected = None if model_dir is None else from_run(model_dir, which, _is_halved(folder))
    job = _Job(folder, expected, inspect or _in_fresh_process)
    checks: list[Check] = []
    stopped = False
    for name, check in job.checks():
        if stopped:
            checks.append(Check(name, None, "not asked"))
            continue
        try:
            checks.append(Check(name, True, check()))
        except _Failed as failure:
            checks.append(Check(name, False, str(failure)))
            stopped = True
    return Validation(str(folder), checks)


class _Job:
    def __init__(self, folder: Path, expected: Expected | None, inspect: Inspect):
        self._folder = folder
        self._expected = expected
        self._inspect = inspect
        self._found: dict[str, Any] = {}
        self._slots = self._pairs = 0
        self._unwarmed = False  # exported with warm-up "none"
        self._assets: dict[str, str] = {}
        self._warmup: Requests = []
        self._few: Requests = []

    def checks(self) -> Iterator[tuple[str, Callable[[], str]]]:
        yield "pairs.json names slots and pairs", self._read_pairs
        yield "warm-up requests can be read", self._read_requests
        yield "loads in a fresh process", self._load
        yield "vocabularies are as they were exported", self._read_assets
        yield "stock ops only", self._ops
        yield "signatures: names, types, ranks", self._signatures
        yield "warm-up requests are answered", self._warm_up
        yield "batch is every output's first dimension", self._batch
        yield "the same row scores the same by every signature", self._agree
        if self._expected is not None:
            yield "scores are the checkpoint's", self._scores

    def _read_pairs(self) -> str:
        path = self._folder / "assets.extra" / "pairs.json"
        try:
            described = json.loads(path.read_text(encoding="utf-8"))
            self._slots, self._pairs = len(described["slots"]), len(described["pairs"])
            inside = all(0 <= slot < self._slots for pair in described["pairs"] for slot in pair["slots"])
            schema_id = described["schema_id"]
            self._unwarmed = described.get("warmup") == "none"
            self._assets = dict(described.get("assets", {}))
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise _Failed(f"{path}: {type(error).__name__}: {error}") from error
        if not inside:
            raise _Failed(f"{path}: a pair names a slot that does not exist")
        if self._expected is not None and schema_id != self._expected.schema_id:
            raise _Failed(f"the export is of schema {schema_id}, the run of {self._expected.schema_id}")
        return f"{self._slots} slots, {self._pairs:,} pairs, schema {schema_id}"

    def _read_requests(self) -> str:
        path = self._folder / "assets.extra" / "tf_serving_warmup_requests"
        if self._unwarmed and not path.exists():
            rows = {"feature_ids": np.zeros([3, self._slots], np.int64)}
            rows["feature_vals"] = np.zeros([3, self._slots], np.float32)
            self._few = [("serving_default", {name: array[:n] for name, array in rows.items()}) for n in (0, 1, 3)]
            return "exported without any"
        if not path.is_file():
            raise _Failed(f"{path} is missing: the first callers would wait for what it sets up")
        try:
            for request in read_warmup(path):
                inputs = {name: to_array(proto) for name, proto in request.inputs.items()}
                self._warmup.append((request.model_spec.signature_name or "serving_default", inputs))
        except (ValueError, tf.errors.OpError) as error:
            raise _Failed(f"{path}: {error}") from error
        largest = {signature: inputs for signature, inputs in sorted(self._warmup, key=lambda item: _rows(item[1]))}
        self._few = [
            (signature, {name: array[:rows] for name, array in inputs.items()})
            for signature, inputs in largest.items()
            for rows in (0, 1, 3)
        ]
        return f"{len(self._warmup)} requests for {', '.join(sorted(largest))}"

    def _load(self) -> str:
        asked = self._warmup + self._few + (self._expected.requests if self._expected else [])
        self._found = self._inspect(str(self._folder), asked)
        if self._found["error"]:
            raise _Failed(self._found["error"])
        if self._found["modules"] and self._inspect is _in_fresh_process:
            raise _Failed(f"the process is not fresh: it has {self._found['modules'][0]}")
        return f"only TensorFlow {tf.__version__}, {self._found['seconds']:.1f} s with all answers"

    def _read_assets(self) -> str:
        # An extra line would give its word another word's id, and no other check requests that word.
        folder = self._folder / "assets"
        for name, digest in self._assets.items():
            if sha256_of(folder / name) != digest:
                raise _Failed(f"{folder / name} has changed since it was exported; export the run again")
        return f"{len(self._assets)} files" if self._assets else "the export does not say"

    def _ops(self) -> str:
        foreign = self._found["foreign_ops"]
        if foreign:
            raise _Failed(f"a server does not have {', '.join(foreign[:5])}")
        return "no other"

    def _signatures(self) -> str:
        faults = signature_faults(self._found["signatures"], self._slots, self._pairs)
        if faults:
            raise _Failed("; ".join(faults[:3]) + (" and more" if len(faults) > 3 else ""))
        return ", ".join(sorted(self._found["signatures"]))

    def _warm_up(self) -> str:
        for number, ((signature, _), answer) in enumerate(zip(self._warmup, self._answers(0), strict=False)):
            if isinstance(answer, str):
                raise _Failed(f"request {number} ({signature}): {answer}")
        if self._unwarmed:
            return "there are none"
        unused = sorted(set(self._found["signatures"]) - {signature for signature, _ in self._warmup})
        if unused:
            raise _Failed(f"no request warms up {', '.join(unused)}")
        return "all of them"

    def _batch(self) -> str:
        asked = self._warmup + self._few
        for (signature, inputs), answer in zip(asked, self._answers(0), strict=False):
            rows = _rows(inputs)
            if isinstance(answer, str):
                raise _Failed(f"{signature} with {rows} rows: {answer}")
            for name, array in answer.items():
                if array.shape[:1] != (rows,):
                    raise _Failed(f"{signature}: {name} has shape {list(array.shape)} for {rows} rows")
        return f"for {', '.join(str(rows) for rows in sorted({_rows(inputs) for _, inputs in asked}))} rows"

    def _agree(self) -> str:
        by_rows: dict[int, tuple[str, Arrays]] = {}
        largest = 0.0
        for (signature, inputs), answer in zip(self._warmup, self._answers(0), strict=False):
            if signature == "explain":
                continue
            first, other = by_rows.setdefault(_rows(inputs), (signature, answer))
            scores = {name: array for name, array in answer.items() if name != "bad_cells"}  # ids are never bad
            largest = max(largest, _difference(f"{signature} against {first}", scores, other))
        return f"the rows of the warm-up, to {largest:.1e}"

    def _scores(self) -> str:
        assert self._expected is not None
        answers = self._answers(len(self._warmup) + len(self._few))
        largest = 0.0
        for (signature, _), answer, wanted in zip(
            self._expected.requests, answers, self._expected.answers, strict=True
        ):
            if isinstance(answer, str):
                raise _Failed(f"{signature}: {answer}")
            largest = max(largest, _difference(f"{signature} against the checkpoint", answer, wanted))
        return f"{self._expected.described}, to {largest:.1e}"

    def _answers(self, start: int) -> list[Any]:
        answers: list[Any] = self._found["answers"][start:]
        return answers


def _difference(where: str, found: Arrays, wanted: Arrays) -> float:
    """The largest difference of the outputs that both have, relative for values beyond 1."""
    largest = 0.0
    for name in sorted(set(found) & set(wanted) & {*SCORES, "logit", "attention", "bad_cells"}):
        one, other = np.asarray(found[name], np.float64), np.asarray(wanted[name], np.float64)
        if one.shape != other.shape:
            raise _Failed(f"{where}: {name} has shape {list(one.shape)}, not {list(other.shape)}")
        gap = np.abs(one - other) / np.maximum(np.abs(other), 1.0)
        worst = float(gap.max(initial=0.0))
        if not worst <= TOLERANCE:
            row = int(np.unravel_index(np.argmax(np.nan_to_num(gap, nan=np.inf)), gap.shape)[0])
            raise _Failed(f"{where}: {name} differs by {worst:.2g} in row {row} ({one[row]} and {other[row]})")
        largest = max(largest, worst)
    return largest


def _rows(inputs: Arrays) -> int:
    return len(next(iter(inputs.values())))


def _is_halved(folder: Path) -> bool:
    try:
        types = tf.train.load_checkpoint(str(folder / "variables" / "variables")).get_variable_to_dtype_map()
    except (tf.errors.OpError, ValueError) as error:
        raise UserError(f"validate-export: {folder}: its variables cannot be read: {error}") from error
    return bool({tf.float16, HALF_BITS} & set(types.values()))


def _in_fresh_process(folder: str, requests: Requests) -> dict[str, Any]:
    script = Path(__file__).with_name("clean_process.py")
    with tempfile.TemporaryDirectory() as scratch:
        asked, answered = Path(scratch, "requests"), Path(scratch, "answers")
        asked.write_bytes(pickle.dumps(requests))
        command = [sys.executable, "-I", str(script), folder, str(asked), str(answered)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise _Failed(f"no result within {_SECONDS} s") from None
        if done.returncode:
            said = " ".join(done.stderr.strip().splitlines()[-1:]) or "no message"
            raise _Failed(f"the process ended with {done.returncode}: {said}")
        found: dict[str, Any] = pickle.loads(answered.read_bytes())
        return found


def from_run(model_dir: str | Path, which: Which, halved: bool) -> Expected:
    """Score rows with a checkpoint, without using the export.

    The rows are those kept with the run, some made up from the schema, and 256 of random ids with random values.

    Args:
        halved: compare with vectors rounded to half precision.

    Raises:
        UserError: no such run or checkpoint.
    """
    model, schema, *_ = open_run(model_dir, which)
    if halved:
        halve_vectors(model)
    rows = [*load_samples(model_dir, schema.raw_columns), *made_up_rows(schema, _MADE_UP_ROWS)]
    raw = {name: np.array([row[name] for row in rows], object) for name in schema.raw_columns}
    encoded = FeatureTransform(schema)({name: tf.constant(cells) for name, cells in raw.items()})
    by_raw = _checkpoint_answer(model, encoded.feature_ids.numpy(), encoded.feature_vals.numpy())
    by_raw["bad_cells"] = encoded.bad.numpy().sum(axis=1)
    ids, vals = _random_rows(schema)
    by_ids = {**_checkpoint_answer(model, ids, vals), "bad_cells": np.zeros(len(ids), np.int32)}
    examples = np.array(serialize_examples(ids, vals, None, None, None, [b""] * len(ids)), object)
    encoded_inputs = {"feature_ids": ids, "feature_vals": vals}
    requests: list[tuple[str, Arrays]] = [
        ("raw", raw),
        ("serving_default", encoded_inputs),
        ("examples", {"examples": examples}),
    ]
    answers = [by_raw, by_ids, by_ids]
    attention = model.attention({name: tf.constant(array) for name, array in encoded_inputs.items()})
    if attention is not None:
        requests.append(("explain", encoded_inputs))
        answers.append({"attention": attention.numpy(), "bad_cells": by_ids["bad_cells"]})
    half = "; vectors rounded to half precision in both" if halved else ""
    return Expected(schema.id, requests, answers, f"{len(rows)} raw and {len(ids)} random rows{half}")


def _checkpoint_answer(model: CTRModel, ids: np.ndarray, vals: np.ndarray) -> Arrays:
    batch = {"feature_ids": tf.constant(ids), "feature_vals": tf.constant(vals)}
    logit = model(batch, training=False, corrected=True)
    return {"logit": logit.numpy(), model.output_name: model.predictions(logit).numpy()}


def _random_rows(schema: ResolvedSchema) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (_RANDOM_ROWS, schema.num_slots)
    ids = rng.integers(0, schema.feature_size, shape, np.int64)
    ids[rng.random(shape) < 0.1] = 0
    return ids, rng.normal(1.0, 0.5, shape).astype(np.float32)
