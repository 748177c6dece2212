"""Infers a first schema for a log from a sample."""

from __future__ import annotations

import re
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from afm_ctr.errors import UserError
from afm_ctr.infer.label import LabelGuess, find_label
from afm_ctr.infer.libfm import libfm_fields
from afm_ctr.infer.missing import Missing, find_missing
from afm_ctr.infer.profile import Profile
from afm_ctr.infer.suggest import Suggestion, estimated, is_group, suggest
from afm_ctr.infer.table import Table, read_table
from afm_ctr.infer.texts import LABEL_NAMES, NOTHING, shown
from afm_ctr.infer.write import columns, comment, flow
from afm_ctr.io.files import as_user_error, write_text
from afm_ctr.pair_signal import signals_of
from afm_ctr.schema import FeatureSchema, read_yaml, validate
from afm_ctr.sizing import UNKNOWN, DataSize

_TRAIN_SHARE = 0.8  # in every suggested split


@dataclass(frozen=True)
class Inference:
    """An inferred schema, with the evidence.

    Attributes:
        text: the YAML, with comments.
        schema: the parsed YAML.
        rows: number of sampled rows.
        files: number of matching files; ``looked_at``: number of files read.
        total: rows of all files; ``None``: unknown.
        rejects: sampled lines that are not rows, by reason.
        columns: for each column its name, the suggestion, and warnings.
        split: value for ``prepare --split``; ``None``: there is no label to train on.
        first: path of one of the files.
        cells: the sample's cells by column; ``positive``: its labels, ``None`` without labels or if they are numbers.
    """

    text: str
    schema: FeatureSchema
    rows: int
    files: int
    looked_at: int
    total: int | None
    rejects: dict[str, int]
    columns: list[dict[str, Any]]
    split: str | None
    first: str
    cells: Mapping[str, Sequence[bytes]] = field(repr=False, compare=False)
    positive: np.ndarray | None = field(repr=False, compare=False)

    def size(self, *, tried: bool = True) -> DataSize:
        """Size of the train split of the suggested rule; the numbers of ids beyond the sample are estimated.

        Args:
            tried: whether to try penalties and pairs on the sample, which TensorFlow encodes for that.
        """
        total = self.rows if self.total is None else self.total
        known = [column for column in self.columns if "distinct_in_all" in column]
        distinct = {mine["name"]: column["distinct_in_all"] for column in known for mine in column["suggested"] or ()}
        signals = UNKNOWN
        if tried and self.positive is not None:
            from afm_ctr.infer.trial import encoded

            signals = signals_of(encoded(self.schema, self.cells, self.positive, _TRAIN_SHARE))
        return DataSize.of(self.schema, max(round(_TRAIN_SHARE * total), 1), distinct, signals=signals)

    def command(self, inputs: Sequence[str], schema: Path, output: str = "DATA") -> str:
        """The shell command that prepares these logs with the schema."""
        words = ["afm-ctr", "prepare", "--schema", str(schema)]
        words += [word for item in inputs for word in ("--input", item)]
        words += ["--output", output, *(["--split", self.split] if self.split else ["--no-label"])]
        return shlex.join(words)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        plain = {name: value for name, value in self.__dict__.items() if name not in ("cells", "positive")}
        return {**plain, "schema": self.schema.model_dump(mode="json", exclude_defaults=True)}


def infer_schema(
    inputs: Sequence[str], label: str | None = None, labelled: bool = True, name: str | None = None
) -> Inference:
    """Infer a schema from a sample of logs.

    The sample has at most 30,000 rows, spread evenly over up to 20 files and their first 256 MB (over 16 ranges of a
    plain file that is larger than its share).

    Args:
        inputs: local paths or globs.
        label: the label's column, by its name in the log; ``None``: guess.
        labelled: False: the log has no label.
        name: name of the data set; ``None``: the first file's.

    Raises:
        UserError: the files are missing or in an unknown format, or the label cannot be guessed.
    """
    table = read_table(inputs)
    if table.layout.format["kind"] == "libfm":
        body, found, guess = _libfm(table, labelled)
    else:
        body, found, guess = _columns(table, label, labelled)
    title = name or Path(table.paths[0]).name.split(".")[0] or "log"
    text = "\n".join([*_head(table), f"name: {flow(title)}", "", *_format(table), "", *body]) + "\n"
    schema = validate(FeatureSchema, yaml.safe_load(text), "the inferred schema")
    return Inference(
        text=text,
        schema=schema,
        rows=table.rows,
        files=len(table.paths),
        looked_at=len(table.looked_at),
        total=table.total,
        rejects=dict(sorted(table.rejects.items())),
        columns=found,
        split=_split(guess),
        first=table.paths[0],
        cells=table.cells,
        positive=None if guess is None else guess.positive,
    )


def labelled_advice(error: UserError) -> str:
    """The message of an error of :func:`infer_schema` without the advice ``--no-label``, if a label is required."""
    return re.sub(r",? or (say )?--no-label", "", str(error))


def _head(table: Table) -> list[str]:
    total = "an unknown number" if table.total is None else f"{'' if table.whole else 'about '}{table.total:,}"
    files = f"{len(table.looked_at)} of {len(table.paths)} files" if len(table.paths) > 1 else table.paths[0]
    lines = [
        f"A first schema, written by afm-ctr infer-schema after a look at {table.rows:,} rows of {total} in {files}.",
        "Every figure below is of those rows. Read it, change what you know better, then run afm-ctr prepare.",
        "Own AUC: how a column's positive shares in one half of the rows order the other half.",
        "Chance of a new value: the share of rows whose value was seen once.",
    ]
    if table.lost:
        lines.append(f"Lines that are no rows: {table.lost}.")
        if table.repair:
            lines.append(f"LOOK AT THIS: prepare stops where they are more than 1 % of the lines: {table.repair}.")
    return [*comment(lines), ""]


def _format(table: Table) -> list[str]:
    lines = comment(table.layout.why)
    lines.append("format:")
    lines += [f"  {key}: {flow(value)}" for key, value in table.layout.format.items()]
    named = [column for column in table.columns if column.header is not None]
    if table.layout.format["kind"] == "delimited" and not table.layout.format["header"]:
        lines += ["  # Without a header line: every column, in file order. Give them better names.", "  columns:"]
        lines += columns([column.name for column in table.columns])
    elif named:
        lines += ["  # Names for what the log calls its columns, where that is no name for a schema.", "  columns:"]
        lines += columns([column.model_dump() for column in named])
    return lines


def _split(guess: LabelGuess | None) -> str | None:
    """The last rows, as a model is used on later ones; if these all have one label, a hash of the rows' keys."""
    if guess is None:
        return None
    if guess.positive is not None:
        tenths = np.array_split(guess.positive, 10)[-2:]
        both = 0 < guess.positive.sum() < len(guess.positive)
        if both and any(len(part) >= 20 and part.min() == part.max() for part in tenths):
            return "hash:key:80/10/10"
    return "tail:0.1/0.1"


def _libfm(table: Table, labelled: bool) -> tuple[list[str], list[dict[str, Any]], LabelGuess | None]:
    label = Profile("label", "label", table.cells["label"])
    lines: list[str] = []
    guess = None
    if labelled and label.present:
        guess = find_label([label], "label", False, table.paths[0])
        lines += [*comment(guess.why[1:]), f"label: {flow(guess.schema)}", ""]
    why, fields = libfm_fields(table.cells["features"], table.paths[0])
    lines += [*comment(why), "fields:", *(f"  - {flow(mine)}" for mine in fields)]
    return lines, [{"name": mine["name"], "suggested": mine, "odd": []} for mine in fields], guess


def _columns(
    table: Table, label: str | None, labelled: bool
) -> tuple[list[str], list[dict[str, Any]], LabelGuess | None]:
    cells = {
        column.name: [b"" if cell in NOTHING else cell for cell in table.cells[column.name]]
        for column in table.columns
    }  # a label of NULL is missing
    profiles = [Profile(column.name, column.header or column.name, cells[column.name]) for column in table.columns]
    _check_label(table, label, labelled)
    headless = table.layout.format.get("header") is False
    guess = find_label(profiles, label, headless, table.paths[0]) if labelled else None
    if guess is not None:
        profiles = [profile for profile in profiles if profile is not guess.profile]
    missing = find_missing({profile.name: table.cells[profile.name] for profile in profiles})
    profiles = [Profile(p.name, p.header, missing.removed(p.name, p.cells)) for p in profiles]
    if guess is not None and guess.positive is not None:
        for profile in profiles:
            profile.rate(guess.positive)
    suggestions = [_with_missing(suggest(profile, table.total), missing) for profile in profiles]
    if all(suggestion.left_out for suggestion in suggestions):
        found = {s.profile.name: s.left_out for s in suggestions} | table.layout.left_out
        why = "; ".join(f"{name}: {reason}" for name, reason in list(found.items())[:5])
        lost = f"; some lines are no rows ({table.lost}): {table.repair}" if table.repair else ""
        raise UserError(f"{table.paths[0]}: no column is fit for a feature: {why or 'there is only the label'}{lost}")
    lines = comment(["No label: to score with, not to train on."] if guess is None else guess.why)
    lines += [""] if guess is None else [f"label: {flow(guess.schema)}", ""]
    lines += _roles(suggestions)
    lines += _missing(missing)
    lines.append("fields:")
    for suggestion in suggestions:
        lines += _field(suggestion)
    for column, why in table.layout.left_out.items():
        lines += comment([f"{shown(column.encode(), 60)}: LOOK AT THIS, left out: {why}."], 2)
    left_out = [{"name": column, "suggested": None, "odd": [why]} for column, why in table.layout.left_out.items()]
    return lines, [*(_summary(suggestion, table.total) for suggestion in suggestions), *left_out], guess


def _check_label(table: Table, label: str | None, labelled: bool) -> None:
    """Refuse a column that is the label by its name, but cannot be read."""
    left_out = table.layout.left_out
    if label is not None and label in left_out:
        raise UserError(f"--label {label}: {table.paths[0]}: {left_out[label]}")
    there = {text.lower() for column in table.columns for text in (column.name, column.header or "")}
    if labelled and label is None and not there & set(LABEL_NAMES):
        for name, why in left_out.items():
            if name.lower() in LABEL_NAMES:
                raise UserError(
                    f"{table.paths[0]}: column {name}, by its name the label, cannot be read: {why}; or name another "
                    "with --label COLUMN, or say --no-label"
                )


def _with_missing(suggestion: Suggestion, missing: Missing) -> Suggestion:
    """Add the texts that mean "missing" in the column to a suggestion."""
    name = suggestion.profile.name
    if name not in missing.rows:
        return suggestion
    texts = [*missing.everywhere, *missing.own.get(name, ())]
    why = f"{missing.rows[name]:,} cells say that there is no value: {', '.join(map(repr, texts))}."
    more = {"missing_values": texts} if name in missing.own else {}
    fields = tuple(mine | more for mine in suggestion.fields)
    return replace(suggestion, why=(suggestion.why[0], why, *suggestion.why[1:]), fields=fields)


def _missing(missing: Missing) -> list[str]:
    if not missing.everywhere:
        return []
    why = "What the log writes where there is no value; each field below follows its `missing`."
    return [*comment([why]), f"missing_values: {flow(missing.everywhere)}", ""]


def _roles(suggestions: Sequence[Suggestion]) -> list[str]:
    """Lines for the key and, as a comment, the group."""
    lines: list[str] = []
    key = next((suggestion.profile for suggestion in suggestions if suggestion.key), None)
    if key is not None:
        why = f"{key.distinct} distinct in {key.rows} rows: it identifies the row in predictions and rejects."
        lines += [*comment([why]), f"key: {key.name}", ""]
    group = next((s.profile for s in suggestions if is_group(s.profile) and s.profile is not key), None)
    if group is not None:
        why = f"By its name whose row it is ({group.distinct} distinct): with this, evaluate gives the group AUC too."
        lines += [*comment([why, f"group: {group.name}"]), ""]
    return lines


def _field(suggestion: Suggestion) -> list[str]:
    lines = comment([f"{suggestion.profile.header}: {suggestion.why[0]}", *suggestion.why[1:]], 2)
    lines += comment([f"LOOK AT THIS: {warning}" for warning in suggestion.warnings], 2)
    if suggestion.left_out is None:
        return [*lines, *(f"  - {flow(mine)}" for mine in suggestion.fields)]
    left_out = "the key" if suggestion.key else "left out"
    lines += comment([f"LOOK AT THIS, {left_out}: {suggestion.left_out}."], 2)
    return [*lines, *(f"  # - {flow(mine)}" for mine in suggestion.fields)]


def _summary(suggestion: Suggestion, total: int | None) -> dict[str, Any]:
    profile = suggestion.profile
    return {
        "name": profile.name,
        "missing": profile.missing / profile.rows,
        "distinct": profile.distinct,
        "distinct_in_all": round(estimated(profile, total)) if profile.separator is None else profile.separator[1],
        "auc": profile.auc,
        "suggested": None if suggestion.left_out else list(suggestion.fields),
        "odd": [*([suggestion.left_out] if suggestion.left_out else []), *suggestion.warnings],
    }


def save(inference: Inference, path: Path, overwrite: bool) -> None:
    """Write the schema, after checking that it reads back the same.

    Raises:
        UserError: the file exists and ``overwrite`` is off, or it cannot be written.
    """
    with as_user_error(f"{path}: cannot be written"):
        if path.exists() and not overwrite:
            raise UserError(f"{path} is there already; give --overwrite to replace it, or another --output")
        with tempfile.TemporaryDirectory() as scratch:
            copy = Path(scratch, "schema.yaml")
            copy.write_text(inference.text, encoding="utf-8")
            if validate(FeatureSchema, read_yaml(copy), path) != inference.schema:
                raise RuntimeError(f"{path}: the schema reads differently than it was meant")
        write_text(path, inference.text)
